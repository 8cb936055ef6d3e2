"""An application whose agent, in a process of its own, leaves what it can to its neighbours."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

from agentsrv import App, Step

app = App()
SEEN: list[int] = []  # numbers of the tasks that ran in this process
ENVIRONMENT = dict(os.environ)
FOLDER = os.getcwd()  # noqa: PTH109 - compared, not used


@app.agent(isolation="process", timeout=2.0, retries=20, retry_base=0)
def work(step: Step, ctx: Any, number: int, kind: str) -> str:
    """Check that the process is fresh, change its state, and do something of ``kind``."""
    found = SEEN, os.getcwd(), dict(os.environ), os.umask(0o077)  # noqa: PTH109
    expected: tuple[object, ...] = [], FOLDER, ENVIRONMENT, 0o022
    if found != expected:
        return f"found {found}; expected {expected}"
    SEEN.append(number)
    os.environ["NUMBER"] = str(number)
    os.chdir("/")
    print("from", number, flush=True)
    ctx.log.info("of %d", number)
    ctx.progress(number)
    if number % 3 == 0:
        subprocess.Popen(["sleep", "977"], start_new_session=number % 2 == 0)
    time.sleep(random.random() / 20)
    if kind == "cancel" or (ctx.attempt == 1 and kind == "time out"):
        time.sleep(977)
    elif ctx.attempt == 1 and kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif ctx.attempt == 1 and kind == "kill parent":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(977)
    elif ctx.attempt == 1 and kind == "exit":
        sys.exit(number % 7)
    return str(number)
