"""Run one task on a server and watch it: the client to copy from.

    agentsrv serve --knowledge agentsrv/cli/demo/knowledge
    python examples/client.py "How does async I/O affect throughput?"

The client reconnects by itself and continues after the last event that it received.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from contextlib import aclosing

from agentsrv.client import Client
from agentsrv.errors import AgentsrvError


async def ask(question: str, url: str) -> int:
    """Start a task, print its events, then its result; return the exit code."""
    async with Client(url) as client:
        task = await client.start(question)
        print(f"task {task.id}")

        async with aclosing(task.events()) as events:
            async for record in events:
                match record.event_type:
                    case "partial_output":
                        print(record.data["output"], end="", flush=True)
                    case "task_completed":
                        print(f"\n--- the result ---\n{record.data['final_output']}")
                        return 0
                    case "task_failed":
                        print(f"\nfailed: {record.data['error_message']}", file=sys.stderr)
                        return 1
                    case other:
                        print(f"[{record.seq}] {other} {record.data.get('step_id', '')}")
    return 1  # somebody cancelled it


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Run one task on an agentsrv server.")
    parser.add_argument("question")
    parser.add_argument("--url", default="ws://127.0.0.1:8765")
    arguments = parser.parse_args()
    try:
        return asyncio.run(ask(arguments.question, arguments.url))
    except AgentsrvError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
