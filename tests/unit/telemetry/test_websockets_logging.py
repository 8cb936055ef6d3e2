import logging

from agentsrv.telemetry.websockets_logging import hide_frame_dumps


def test_lines_for_debugging_are_left_out_whatever_the_level(caplog):
    """They would quote headers; the others are told."""
    caplog.set_level(logging.DEBUG)
    log = hide_frame_dumps(hide_frame_dumps(logging.getLogger("tests.library")))
    log.debug("< Authorization: Bearer secret")
    log.info("connection open")
    assert caplog.messages == ["connection open"]
    assert len(log.filters) == 1
