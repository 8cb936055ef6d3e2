"""AG-UI over WebSocket: a front end starts a run and follows it in the events of AG-UI.

`messages` reads a front end's frames, `events` translates a task's events, both without I/O.
`endpoint` connects them with a socket.
"""
