"""Let MkDocs find the documents at the places that they have in the repository.

MkDocs knows one folder of pages, and ours link to each other and to the code from several. So
the site is given the same tree: the top-level pages, ``docs/`` and ``examples/``.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
SHOWN = (
    "*.md",
    "LICENSE",
    "docs/**/*",
    "examples/*.*",
    "examples/ag-ui/*.*",
    "examples/cluster/*.*",
    "examples/deploy/*",
    "examples/grafana/*",
    "examples/javascript/*",
    "tests/README.md",
    "tests/bench/*.py",
)


def on_config(config: MkDocsConfig) -> None:
    """Add each decision record to the navigation, after the index of the records."""
    (explanation,) = (group["Explanation"] for group in config.nav or [] if "Explanation" in group)
    (records,) = (item["Decision records"] for item in explanation if "Decision records" in item)
    pages = sorted(ROOT.glob("docs/adr/[0-9]*.md"))
    records.extend(page.relative_to(ROOT).as_posix() for page in pages)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the repository's files, in place of those of ``docs_dir`` alone."""
    docs = Path(config.docs_dir)
    assets = [file for file in files if not Path(file.abs_src_path or "").is_relative_to(docs)]
    paths = {path for pattern in SHOWN for path in ROOT.glob(pattern) if path.is_file()}
    ours = [
        File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
        for path in sorted(paths)
    ]
    return Files([*assets, *ours])
