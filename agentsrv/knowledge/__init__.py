"""The knowledge base behind ``ctx.search``: a folder of documents, indexed and searched.

From a folder to an answer:

1. `folder` lists the files, without opening them.
2. `reading` sends each new or changed file to a child process (`reading_process`), which extracts
   passages: `documents` decides and packs, `markup` and `markdown` remove markup.
3. `index` stores the passages in an SQLite file with a full-text index; `vectors` stores their
   vectors if there is an embedding model.
4. `ranking` selects the passages that answer a query, by words and, with a model, by meaning.

`search.KnowledgeBase` combines these and runs them in threads; `service.KnowledgeService` is the
knowledge base of a server, which is refreshed while the server runs. `text` and `stemmer` split
text into sentences, words and stems, for the index and for the built-in agents.
"""
