"""Commands, events, states and plans: data and pure functions, without I/O, clock or event loop.

Theory of operation. Everything that the server knows of a task is a list of events, and everything
that a client wants is a command. This package defines both and the functions between them:

    commands      what a client may send; a declaration of each: reply, example, syntax, rights
    replies       the types of the replies
    events        what may happen to a task; a declaration of each: transitions, audience, fold
    states        the statuses of tasks and steps, with the diagrams of their transitions
    transitions   the tables of transitions, built from the events
    task          `TaskState`, the fold of a log; the only one in Python
    plan          the steps of a task as an acyclic graph, and which of them are ready
    snapshots     the reply to `status`, truncated to the size of a frame
    retry, usage  how long to wait; how much a principal may use

Time is always an argument, so that tests decide what time it is. Instances are not shared between
tasks; commands and plans are frozen.
"""
