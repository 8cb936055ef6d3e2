"""The store in PostgreSQL, which several nodes share.

`store` combines the parts: `writer` and `flush` collect the operations of all tasks into one
statement, `reader` reads logs, `lease` keeps this node's tasks its own, `notifier` announces
commits to other nodes. The SQL is in `statements`, the tables in `schema`.
"""
