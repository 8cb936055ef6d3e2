"""``python -m agentsrv``: the command line."""

from agentsrv.cli import main

main()
