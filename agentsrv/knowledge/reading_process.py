"""Program of the process that reads documents; see `agentsrv.knowledge.reading`.

It is run by its path and imports only the modules that read documents: importing the whole package
takes ten times as long. Requests come as lines of JSON on stdin, ``[path, name]``; each is answered
by one line on stdout: ``{"size": …, "chunks": [[title, text, line], …]}`` or ``{"reason": …}``.
The first line is written when it is ready.

Each file has a budget of CPU time, after which SIGPROF ends the process, whatever C code is at
work. It also ends when stdin does, so it does not outlive the server by more than one file.
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
        seconds: Of CPU time for each file.
        memory: Bytes of address space of this process.
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
        except Exception as error:  # noqa: BLE001 - a file must not fail the others
            return {"reason": f"it cannot be read ({type(error).__name__})"}
        chunks = [[chunk.title, chunk.text, chunk.line] for chunk in document.chunks]
        return {"size": document.size, "chunks": chunks}

    import resource  # noqa: PLC0415 - not on Windows, where clients run

    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most == resource.RLIM_INFINITY or most > memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, most))
    answers, sys.stdout = sys.stdout.buffer, sys.stderr  # libraries may print
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
