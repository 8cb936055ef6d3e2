"""Runs tasks: applies commands, starts steps, writes their events, and recovers after crashes.

Theory of operation
===================

A task is a log of events in the store. A *command* either changes a task that no worker runs
(`idle_tasks`: read the head, decide, append, retry on a conflict) or is passed to the worker that
runs it (`cluster.router`). A `worker` claims tasks from the store. Each claimed task gets a
`runner`, which owns the task's life cycle and starts a `steps.StepRun` for each step whose
dependencies are completed. Runner and steps append events through the task's `journal`, the only
writer of its log. When a lease expires, another worker claims the task; `recovery` reads its log
and continues at the first step without a result. `store_events` passes the store's notifications
to these parts.

Nothing here uses sockets, frames or SQL. Clocks and the store are parameters, so that tests run
many workers in an event loop with virtual time.

========================= ======================================================================
module                    content
========================= ======================================================================
`commands`                one method for each command of a client
`idle_tasks`              optimistic updates of tasks that no worker runs
`steering`                cancel, respond and send, applied to a runner
`worker`                  claims, broken runs, drain
`runner`, `endings`       life cycle of a running task; how it ends early
`recovery`                continuing from a log
`planning`                the plan: given, resumed, or the planner's
`steps`, `step_tasks`     attempts of a step; its asyncio tasks
`agent_errors`            errors of an author's code
`journal`                 numbering, coalescing and committing events
`inputs`, `vault`         questions and messages; encryption of secret answers
`crash_suspects`          order of attempts after a crash
`cache`, `environment`    cached results; what all tasks of a worker share
`store_events`            notifications of the store to worker, broker and cluster
`cluster`                 several nodes on one store
========================= ======================================================================
"""
