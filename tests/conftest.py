"""What a run as a whole needs."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from tests.figures import Figures


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let what the server keeps for its user be in the tests' own folder."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


def pytest_configure(config: pytest.Config) -> None:
    """Let the figures of tests be printed, by the process that reports."""
    config.pluginmanager.register(Figures())
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell's `&` ignores Ctrl-C, and so would all programs that the tests start.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("no deadline", deadline=None)  # an example is slow on a busy machine
    settings.load_profile("no deadline")
    if hasattr(config, "workerinput"):
        # Readline, which pytest imports, leaves the size of the terminal to the processes that
        # pytest starts; the terminals that tests open have sizes of their own.
        for name in ("COLUMNS", "LINES"):
            os.environ.pop(name, None)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Make the table of all characters, which the first text that hypothesis makes needs.

    If `.hypothesis` does not have it yet, this takes 5 s of a core: on a busy machine longer than
    the time limit of the test that happens to be the first.
    """
    functions = [getattr(item, "obj", None) for item in session.items]
    if any(getattr(function, "is_hypothesis_test", False) for function in functions):
        st.characters(codec="utf-8").validate()
