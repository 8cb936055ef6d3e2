"""Runs plain functions in processes, a new process for each attempt of a step.

Theory of operation
===================

Four kinds of process take part. The arrows are "is the parent of"; ``[ ]`` is a session::

    [server] ──► [fork server] ──► [supervisor] ──► [worker, and the programs it starts]

**server** (`pool`, `attempt`, `output`). Has one `ProcessPool` per application. For each attempt it
creates four connections (*channel*, *control*, *stdout*, *stderr*) and sends one end of each to the
fork server.
**fork server** (`forkserver`). A fresh interpreter that imports the application once and forks a
**fork server** (`forkserver`). A new interpreter that imports the application once and forks a
supervisor for each attempt. It never runs an agent, so every worker begins with the state after
the import: changes of the working directory, the environment, the umask and globals in one attempt
are invisible to the others. A fork copies neither threads nor connections. If the import leaves
some, or fails, the fork server replaces itself by one that has not imported the application, and
each worker imports it separately.

**supervisor** (`supervisor`). Forks the worker, waits for its end, and kills the processes that the
worker leaves. It runs no code of authors and has one thread, so it reacts while the worker is busy.

**worker** (`worker`). Receives its job on the channel, calls the function, sends the result, and
exits like any Python program (threads are joined, ``atexit`` handlers run).

Connections
-----------
*channel*, a socket pair between server and worker. Messages are JSON after a length (`wire`). It is
close-on-exec, so programs that the agent starts do not inherit it. The server does not trust the
worker: it unpickles nothing and checks every message. Requests have a number, which the reply
repeats, so either side can send requests.

*control*, a socket pair between server and supervisor. The server sends ``i`` (interrupt the
worker) or closes it (kill). The supervisor sends the worker's exit status. **The end of file on
control means that no process of the attempt is left**: the supervisor holds it until it has killed
and reaped all its descendants, and the fork server holds a copy until it has reaped the
supervisor. An attempt is over when its result (or failure) has been read *and* control has ended.

*stdout*, *stderr*: pipes that the server reads line by line into its log, at a limited rate. An
attempt does not wait for their end.

States of an attempt
--------------------
::

    starting ──► loading ──► running ──► leaving ──► over
        │           │           │           │
        └───────────┴───────────┴─► stopping┘

======== ==================================================== =====================================
starting waits for the fork server, which may still import    cancelled: control is closed, over
         the application; no code of the agent has run
loading  the job was sent; the worker imports the             cancelled, or after
         application, unless the fork server has              ``IMPORT_SECONDS``: stopping
running  the import is done; requests are served              cancelled or broken: stopping
leaving  the result was read; the worker exits                after ``EXIT_SECONDS``: killed
stopping interrupted (SIGINT to the worker's process group),  after ``INTERRUPT_SECONDS``: killed
         if it was cancelled or its import takes too long
======== ==================================================== =====================================

Failures
--------
- The server is killed: control and the fork server's connection end. Each supervisor kills its
  worker, its process group, and (on Linux, as the subreaper of its descendants) processes that
  left the group. ``PR_SET_PDEATHSIG`` covers a forked copy of the server that holds a connection.
- A worker kills or stops its supervisor: the worker dies with it (``PR_SET_PDEATHSIG``), and the
  fork server adopts and kills the orphans.
- The import blocks (on a lock, on a network): the fork server is interrupted after
  ``IMPORT_SECONDS`` and continues without the application. Each worker then imports it, and is
  ended after the same time with an error that says so.
- The fork server hangs: it is killed when it has started no process for ``START_SECONDS``, even if
  the attempts that waited have been cancelled meanwhile.
- The fork server is killed: running attempts are not affected; the next attempt starts a new one.
  (If the supervisor of such an attempt is killed as well, programs of its worker survive.)
- A worker closes or reuses the channel's descriptor: each write compares the socket's identity.

Systems other than Linux have neither ``PR_SET_PDEATHSIG`` nor subreapers: programs that leave the
worker's process group, and programs of a worker that kills its own supervisor, survive.
"""

from agentsrv.agents.isolation.attempt import ReturnLimits
from agentsrv.agents.isolation.pool import ProcessFunction, ProcessPool, refuse_in_worker

__all__ = ["ProcessFunction", "ProcessPool", "ReturnLimits", "refuse_in_worker"]
