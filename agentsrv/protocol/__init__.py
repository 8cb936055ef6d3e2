"""The wire protocol ``agentsrv.v1`` without I/O: text to commands, replies and events to bytes.

Theory of operation. A connection owns a `Session` (``session``), which turns each text frame into a
command or an error. Strict JSON is parsed by ``strict_json``, a line for people is translated into
the same fields by ``command_line``, and the fields are validated by the models of
``agentsrv.models.commands``. The server's frames are encoded by ``frames``; events were encoded
when they were numbered (``agentsrv.models.events``) and pass unchanged.

The published description is built from the same models: ``schema`` makes an AsyncAPI document of
the declarations of commands and events, the types of frames (``frame_types``) and their
``examples``; ``typescript`` makes declarations of that document. ``close_codes`` has the reasons
for which the server closes a connection.

Nothing here waits, reads a clock or knows a socket, so a test feeds text and compares bytes.
"""

from typing import Final

PROTOCOL: Final = "agentsrv.v1"
