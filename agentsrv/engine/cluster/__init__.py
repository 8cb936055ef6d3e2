"""Several nodes on one store: where a command is applied, and how events of other nodes arrive.

`router` decides where a command is applied. `remote_commands` sends cancel, respond and send
to the node that holds the task's lease, through an inbox in the store. `follower` reads the commits
of other nodes and publishes them to the subscribers of this node, in order.
"""
