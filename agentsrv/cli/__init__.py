"""The command line: ``agentsrv serve``, ``run``, ``tail``, ``status``, ``list`` and so on."""

from agentsrv.cli.commands import main

__all__ = ["main"]
