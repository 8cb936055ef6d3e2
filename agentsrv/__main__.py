"""``python -m agentsrv`` runs the command line."""

from agentsrv.cli import main

if __name__ == "__main__":  # agents' processes import this module under another name
    main()
