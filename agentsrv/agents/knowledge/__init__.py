"""The knowledge base: a folder of documents that agents can search."""
