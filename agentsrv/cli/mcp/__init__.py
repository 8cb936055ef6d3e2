"""``agentsrv mcp``: a server's tasks as tools of the Model Context Protocol; the extra ``mcp``."""
