"""Several nodes on one store: where a command goes, and how a node learns of others' events.

`router` decides where a command is carried out. `remote_commands` sends cancel, respond and send
to the node that holds the task's lease, through an inbox in the store. `follower` reads what other
nodes commit and publishes it to the subscribers of this node, in order.
"""
