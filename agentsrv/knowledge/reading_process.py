"""The program of the process that reads documents; see `agentsrv.knowledge.reading`.

It is started by its path and imports only the modules that read documents, because importing the
whole package takes ten times as long. Requests arrive on stdin as lines of JSON, ``[path, name]``.
Each is answered by one line on stdout: ``{"size": …, "chunks": [[title, text, line], …]}`` or
``{"reason": …}``. A first line, ``{}``, is written when the process is ready.

A timer ends the process by SIGPROF if a file takes more than its CPU time, even inside C code. The
process also ends when stdin is closed, so it outlives the server by one file at most.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def main(seconds: float, memory: int) -> None:
    """Answer requests until stdin ends.

    Args:
        seconds: Maximum CPU time for each file.
        memory: Maximum address space of this process, in bytes.
    """
    here = Path(__file__).parent
    for name, folder in (
        ("agentsrv", here.parent),
        ("agentsrv.knowledge", here),
    ):
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    from agentsrv.knowledge.documents import (  # noqa: PLC0415 - after the packages
        UnreadableError,
        read_document,
    )

    def answer(path: str, name: str) -> dict[str, Any]:
        try:
            document = read_document(Path(path), name)
        except UnreadableError as error:
            return {"reason": str(error)}
        except MemoryError:
            return {"reason": f"it takes more than {memory >> 20} MiB of memory to read"}
        except Exception as error:  # noqa: BLE001 - other files must still be read
            return {"reason": f"it cannot be read ({type(error).__name__})"}
        chunks = [[chunk.title, chunk.text, chunk.line] for chunk in document.chunks]
        return {"size": document.size, "chunks": chunks}

    import resource  # noqa: PLC0415 - missing on Windows, where clients run

    _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
    if hard_limit == resource.RLIM_INFINITY or hard_limit > memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, hard_limit))
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # libraries may print to stdout
    answers.write(b"{}\n")
    answers.flush()
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, seconds)
        found = answer(*json.loads(line))
        signal.setitimer(signal.ITIMER_PROF, 0)
        answers.write(json.dumps(found).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
