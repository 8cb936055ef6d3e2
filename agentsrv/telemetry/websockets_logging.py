"""Logs of libraries that would quote what nobody should read."""

from __future__ import annotations

import logging


def hide_frame_dumps(log: logging.Logger) -> logging.Logger:
    """The log of a WebSocket library, without its lines for debugging.

    They quote each header and frame as it came, and so the tokens in them.
    """
    log.addFilter(_is_no_quote)  # again, it changes nothing
    return log


def _is_no_quote(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG
