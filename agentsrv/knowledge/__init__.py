"""The knowledge base behind ``ctx.search``: a folder of documents, indexed and ranked.

`folder` lists the files, `reading` reads each in a process of its own (`documents`, `markup`),
`index` keeps the passages in an SQLite full-text index, and in vectors if there is an embedding
model. `ranking` chooses passages for a query. `search` and `library` keep the index current and
answer queries from threads of their own.
"""
