"""What a run as a whole needs."""

from __future__ import annotations

import gc
import os
import signal

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from tests.support.figures import Figures


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Let what the server keeps for its user be in the tests' own folder."""
    os.environ["XDG_STATE_HOME"] = str(tmp_path_factory.mktemp("state"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let a run decide how many interleavings the simulations try."""
    parser.addoption(
        "--seeds",
        type=int,
        default=None,
        metavar="COUNT",
        help="try the seeds below COUNT in each simulation, not those that its marker names",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test of each seed of a simulation: a failing one is named, and replays alone."""
    if marker := metafunc.definition.get_closest_marker("seeds"):
        count = metafunc.config.getoption("--seeds")
        metafunc.parametrize("seed", range(marker.args[0] if count is None else count))


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
    """Do once what would otherwise make single tests slow."""
    functions = [getattr(item, "obj", None) for item in session.items]
    if any(getattr(function, "is_hypothesis_test", False) for function in functions):
        # Hypothesis's table of all characters: 5 s of a core if `.hypothesis` does not have it
        # yet, on a busy machine more than the time limit of one test.
        st.characters(codec="utf-8").validate()
    # What has been imported and collected lives as long as the run: the garbage collector need not
    # look at it again. Simulations collect before they start, each of them.
    gc.collect()
    gc.freeze()
