"""Runs command lines of JSON from stdin, each in a process of its own that need import nothing.

Prints as JSON how each has ended: its exit status, and what it said on stderr.
"""

import json
import os
import sys
import tempfile
import warnings

from agentsrv.cli import main
from agentsrv.server.auth import tokens  # noqa: F401 - else each process would import it anew


def run(arguments: list[str], variables: dict[str, str]) -> tuple[int, str]:
    """Run one of them."""
    with tempfile.TemporaryFile("w+") as told:
        pid = os.fork()
        if not pid:
            os.dup2(told.fileno(), sys.stderr.fileno())
            os.environ.update(variables)
            sys.argv = ["agentsrv", *arguments]
            main()
            sys.exit()
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        told.seek(0)
        return status, told.read()


if __name__ == "__main__":
    warnings.simplefilter("ignore", DeprecationWarning)  # of fork: no thread here runs yet
    print(json.dumps([run(*line) for line in json.load(sys.stdin)]))
