"""Agents that are plain functions, run in a thread or in a separate process.

- `modes`: turns a plain function into an async one, according to the agent's ``isolation``.
- `process_function`: the theory of operation of processes.
- `pool`: starts the fork server and runs attempts; `attempt`: one attempt, seen from the server.
- `forkserver`, `supervisor`, `worker`: the three kinds of process below the server.
- `wire`: the messages between server and worker; `output`: the output of agents in the log.
- `system`: calls of the operating system.
"""
