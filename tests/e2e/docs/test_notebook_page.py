"""docs/howto/notebook.md: its cells, one after another, print what the page shows."""

from tests.e2e.docs.pages import of, run
from tests.e2e.docs.test_client_page import SHOP
from tests.support.listening import listening


def test_the_cells_print_what_the_page_shows(tmp_path):
    """In one namespace, as in a notebook."""
    (tmp_path / "shop.py").write_text(SHOP)
    with listening(tmp_path, "shop:app") as url:
        printed = run(tmp_path, "cells.py", "\n".join(of("howto/notebook.md", "python")), url)
    assert printed == "".join(of("howto/notebook.md", "text"))
