"""The command line: ``agentsrv serve``, ``run``, ``tail``, ``status``, ``list`` and so on."""

import os
import sys
from contextlib import suppress


def main() -> None:
    """Run the command line; ``--version`` alone does without the imports of the commands."""
    if sys.argv[1:] == ["--version"]:
        from agentsrv.version import __version__

        with suppress(OSError):  # the commands tell what is wrong with stdout
            os.write(1, f"agentsrv {__version__}\n".encode())
            return
    from agentsrv.cli import commands

    commands.main()
