"""docs/howto/browser.md: its program, under Node.js with the WebSocket that it lacks before 22."""

import asyncio
from typing import Any

import pytest

from tests.e2e.docs.pages import URL, of
from tests.e2e.docs.test_client_page import SHOP
from tests.support.nodejs import npm_folder
from tests.support.proxy import Cut, CuttingProxy, Kind
from tests.support.talk import serving

BEFORE = 'import { WebSocket } from "ws";\nglobalThis.WebSocket ??= WebSocket;\n'


@pytest.mark.interop
@pytest.mark.timeout(300)  # the first time it is installed
@pytest.mark.parametrize("cuts", [(), (Cut(1400, Kind.CLOSE),)], ids=["whole", "cut"])
async def test_the_program_prints_what_the_page_shows(cuts, tmp_path):
    """It runs a task, shows its text and answers what it asks, over a lost connection too."""
    (tmp_path / "node_modules").symlink_to(npm_folder("ws", "ws@8.23.0") / "node_modules")
    (function, use), (shown,) = of("howto/browser.md", "js"), of("howto/browser.md", "text")
    names: dict[str, Any] = {"__name__": "shop"}
    exec(SHOP, names)  # noqa: S102 - the page is ours
    coming = iter(cuts)
    async with (
        serving(names["app"]) as server,
        CuttingProxy(server.port, lambda: next(coming, None)).running() as proxy,
    ):
        program = f"{BEFORE}{function}{use.replace(URL, proxy.url)}"
        (tmp_path / "page.mjs").write_text(program)
        process = await asyncio.create_subprocess_exec(
            "node", "page.mjs", cwd=tmp_path, stdout=asyncio.subprocess.PIPE
        )
        printed, _ = await process.communicate()
        assert proxy.connections == 1 + len(cuts)
    assert printed.decode() == shown
