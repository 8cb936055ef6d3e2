"""Keeps frame contents of the ``websockets`` library out of the log."""

from __future__ import annotations

import logging


def hide_frame_dumps(log: logging.Logger) -> logging.Logger:
    """Drop the DEBUG records of a logger of ``websockets``, and return the logger.

    They contain headers and frames, and with them tokens.
    """
    log.addFilter(_is_above_debug)  # adding it again has no effect
    return log


def _is_above_debug(record: logging.LogRecord) -> bool:
    return record.levelno > logging.DEBUG
