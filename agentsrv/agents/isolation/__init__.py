"""Agents that are plain functions, run in a thread or in a process of their own.

`modes` chooses. `process_function` is the agent that an author's function becomes with
``isolation="process"``: it takes a process from the `pool`, whose `forkserver` starts processes
that have the author's modules imported already. `wire` is the exchange with the process.
"""
