"""The store in PostgreSQL, which several nodes share.

`store` combines the parts. `flush` collects the requests of all callers and `writer` writes them in
one transaction; `reader` reads; `lease` keeps this node's tasks from other nodes; `notifier`
announces commits to them; `damage` finds unreadable tasks. The SQL is in ``queries.sql``, which
`sql` loads, the tables in ``schema.sql``, which `schema` applies.
"""
