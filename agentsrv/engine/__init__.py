"""Runs tasks: carries out commands, starts steps, writes their events, survives crashes.

Theory of operation. A task is a log of events in the store. A *command* either changes a task that
no worker runs (`idle_tasks`: read the head, decide, append, retry on a conflict) or is passed to
the worker that runs it (`cluster.router`). A `worker` claims tasks from the store. Each claimed
task gets a `runner`, which owns the task's life cycle and starts a `steps.StepRun` for each step
whose dependencies are completed. Runner and steps append events through the task's `journal`, the
only writer of its log. When a lease expires, another worker claims the task; `recovery` reads its
log and continues at the first step without a result. `store_events` passes what happens in the
store to the parts that it concerns.

Nothing here knows sockets, frames or SQL. Clocks and the store are parameters, so that tests run
many workers in an event loop with virtual time.
"""
