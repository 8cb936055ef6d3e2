"""The site that `make docs` makes of the documents."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MKDOCS = (sys.executable, "-m", "mkdocs", "build", "--config-file=.ci/mkdocs.yml")
OWN = re.compile(r"<(?:script|link|img)\b[^>]*\b(?:src|href)=\"?((?!data:)[^\" >:]+)")
LOADED = re.compile(r"<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=\"?(https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, made without a warning: each page is in the navigation, each link leads somewhere."""
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [*MKDOCS, f"--site-dir={folder}"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return folder


def test_every_document_is_a_page(site):
    """The pages below docs/ and those at the top level."""
    for page in (*ROOT.glob("docs/**/*.md"), ROOT / "SYSTEM_DESIGN.md"):
        name = "index" if page.stem == "README" else page.stem
        assert (site / page.relative_to(ROOT)).with_name(f"{name}.html").is_file()
    assert "agentsrv" in (site / "index.html").read_text()


def test_what_a_page_loads_is_there(site):
    """The theme's style and scripts, and pictures."""
    for page in (site / "index.html", site / "docs" / "explanation" / "performance.html"):
        loaded = OWN.findall(page.read_text())
        assert any(".css" in name for name in loaded)
        assert any(".js" in name for name in loaded)
        for name in loaded:
            assert (page.parent / name.partition("?")[0]).is_file(), name


def test_nothing_is_fetched_from_elsewhere(site):
    """Neither fonts nor scripts nor pictures."""
    for page in site.rglob("*.html"):
        assert not LOADED.search(page.read_text()), page
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?(?:https?:)?//", style.read_text()), style
