"""The server's port: sockets, HTTP, authentication, limits and connections.

- `listener`: accepts sockets and closes them at the end; `http`: plain HTTP, checks of handshakes.
- `auth`: API keys and JSON Web Tokens, in the handshake or in the first frames.
- `connection`: executes the commands of one client; `requests`: reads its next command.
- `batching`: the socket, with writes once per loop turn and limited reads; `loop_scheduler`: the
  order in which connections use the loop.
- `limits`: quotas of principals and addresses; `cluster_usage`: their usage on other nodes.
- `startup_checks`: unsafe addresses, TLS, the client's address behind a proxy; `open_files`.
- `static_files`, `docs`, `metrics`: the pages.

Limits on clients, in the order in which they apply, and the code that enforces them:

1. sockets in all, and of each address       ``ConnectionLimiter.accept``, from ``connection_made``
2. time for the handshake, size of headers   ``websockets``, by ``Listener.start``
3. ``Host`` and ``Origin``                   ``HttpRoutes``
4. connections of the address or principal   ``HttpRoutes``, ``Listener._handle``
5. connections in all                        ``Listener``, before the handshake's end
6. time until authentication                 ``auth.handshake.identify``
7. bytes of a message                        ``STRANGER_FRAME``, ``max_frame`` of the settings
8. time of the event loop                    ``LoopScheduler``, from ``data_received`` and below
9. pings, pongs and fragments                ``BatchedConnection.charge``
10. incomplete large messages                ``Quota.begin_large``, by ``BatchedConnection``
11. queued bytes and messages                ``QUEUE``, ``MAX_QUEUED``

and then, for each message, in ``next_request``, ``Session.receive`` and ``Connection``:

12. room for the answer                      ``BatchedConnection.wait_for_room``
13. rate of the address or principal         ``Quota.take``, by ``cost_of``
14. JSON values and depth                    ``strict_json.check_size``
15. authentication                           ``Session.receive``
16. commands in progress, and their bytes    ``Connection._receive``
17. subscriptions, the queue, running tasks  ``engine``, ``delivery``, ``store``
"""
