"""The orchestrator: commands decided, tasks run, the log followed. No sockets, no frames."""
