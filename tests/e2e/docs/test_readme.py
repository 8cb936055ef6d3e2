"""README.md: its agent is served, and its client prints what it is said to."""

from __future__ import annotations

import re

from tests.e2e.docs.pages import DOCS, run
from tests.support.listening import listening

PAGE = (DOCS.parent / "README.md").read_text(encoding="utf-8")


def test_the_client_runs_the_agent(tmp_path):
    """The client prints each event and the output."""
    agent, client = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "hello.py").write_text(agent)
    with listening(tmp_path, "hello:app") as url:
        printed = run(tmp_path, "client.py", client, url).splitlines()
    assert printed[0] == "1 task_created"
    assert printed[-2].endswith(" task_completed")
    assert printed[-1] == "Hello, Ada "
