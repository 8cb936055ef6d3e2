"""The listener: sockets, HTTP, authentication, limits and connections.

The limits for what a client sends, in the order in which they apply, and where:

1. sockets in all, and of each address       ``ConnectionLimiter.open``, from ``connection_made``
2. time for the handshake, size of headers   ``websockets``, by ``Listener.start``
3. ``Host`` and ``Origin``                   ``HttpRoutes``
4. connections of the address or principal   ``HttpRoutes``, ``Listener._handle``
5. connections in all                        ``Listener._check_room``
6. time until authentication                 ``auth.handshake.identify``
7. bytes of a message                        ``STRANGER_FRAME``, ``max_frame`` of the settings
8. time of the event loop                    ``LoopScheduler``, from ``data_received`` and below
9. pings, pongs and fragments                ``BatchedConnection.charge``
10. large messages that are not whole        ``Quota.begin_large``, by ``BatchedConnection``
11. bytes and messages that wait             ``QUEUE``, ``MAX_QUEUED``

and then, for each message, in ``next_request``, ``Session.receive`` and ``Connection``:

12. room for the answer                      ``BatchedConnection.room``
13. rate of the address or principal         ``Quota.take``, by ``cost_of``
14. JSON values and depth                    ``strict_json.check_size``
15. authentication                           ``Session.receive``
16. commands under way, and their bytes      ``Connection._receive``
17. subscriptions, the queue, running tasks  ``engine``, ``delivery``, ``store``
"""
