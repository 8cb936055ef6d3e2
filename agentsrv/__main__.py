"""``python -m agentsrv``: the command line."""

from agentsrv.cli import main

if __name__ == "__main__":  # processes of agents import this module under another name
    main()
