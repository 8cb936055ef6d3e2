import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.programs import require

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_client_behind_nginx_misses_nothing_when_the_running_node_is_killed():
    """PostgreSQL, three nodes and nginx, all real; the task goes on elsewhere."""
    for name in ("postgres", "nginx"):
        require(name)
    result = subprocess.run(
        [sys.executable, "-m", "examples.cluster.local"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert any(line.startswith("      kill -9 node-") for line in lines)
    assert any("task_recovered" in line for line in lines)
    assert "task_completed" in lines[-3]
    assert lines[-1].endswith("events came, each once and in its order.")


def test_the_compose_file_names_the_nodes_that_nginx_knows():
    """As what they call themselves, too."""
    folder = ROOT / "examples/cluster"
    compose, config = (folder / "compose.yaml").read_text(), (folder / "nginx.conf").read_text()
    services = re.findall(r"^  (node-\d):$", compose, re.MULTILINE)
    assert services
    assert services == re.findall(r"server (node-\d):8765 ", config)
    assert services == re.findall(r"AGENTSRV_NODE: (node-\d) ", compose)
