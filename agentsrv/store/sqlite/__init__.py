"""The store in one SQLite file, which one server uses at a time.

`store` accepts operations on the event loop. A thread executes them: `log` writes and reads tasks,
`transaction` groups the writes of all waiting operations into one commit, `recovery` and `faults`
handle damaged pages and full disks. `inspect` and `backup` read the file of a running server.
"""
