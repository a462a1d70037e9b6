"""A headless Chromium to look at pages with, spoken to over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-port=0",
]
PATIENCE = 60.0

LOOK = """(() => ({
  width: document.documentElement.scrollWidth,
  images: [...document.images].map(image => image.complete && image.naturalWidth > 0),
  wide: [...document.querySelectorAll('main p, main h2, figure, img')]
    .filter(node => node.getBoundingClientRect().right > WIDTH + 1).length,
  ink: getComputedStyle(document.body).color,
  paper: getComputedStyle(document.body).backgroundColor,
}))()"""


def find() -> str | None:
    """Give the path of a Chromium, or None."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


class Chromium:
    """A browser of its own: fresh profile, killed at the end."""

    def __init__(self, program: str) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        flags = [*FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen([program, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port = Path(self._profile.name) / "DevToolsActivePort"
        end = time.monotonic() + PATIENCE
        while not (port.exists() and len(port.read_text().split()) == 2):
            if time.monotonic() > end or self._process.poll() is not None:
                self.close()
                msg = f"{program} did not start"
                raise RuntimeError(msg)
            time.sleep(0.05)
        self._port = int(port.read_text().split()[0])

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._profile.cleanup()

    def look(
        self,
        page: Path,
        *,
        width: int = 1200,
        dark: bool = False,
        media: str = "screen",
        script: str = LOOK,
        screenshot: Path | None = None,
        pdf: Path | None = None,
    ) -> dict:
        """Load a page; give what `script` found, with console messages, failed loads and requests for anything else."""
        return asyncio.run(self._look(page, width, dark, media, script, screenshot, pdf))

    async def _look(self, page, width, dark, media, script, screenshot, pdf) -> dict:
        from tornado.httpclient import AsyncHTTPClient
        from tornado.websocket import websocket_connect

        made = await AsyncHTTPClient().fetch(
            f"http://127.0.0.1:{self._port}/json/new", method="PUT", body=b"", request_timeout=PATIENCE
        )
        tab = json.loads(made.body)
        socket = await websocket_connect(tab["webSocketDebuggerUrl"], max_message_size=2**28)
        events: list[dict] = []
        count = 0

        async def receive() -> dict:
            text = await asyncio.wait_for(socket.read_message(), PATIENCE)
            message = json.loads(text)
            if "method" in message:
                events.append(message)
            return message

        async def ask(method: str, **params) -> dict:
            nonlocal count
            count += 1
            mine = count
            await socket.write_message(json.dumps({"id": mine, "method": method, "params": params}))
            while (message := await receive()).get("id") != mine:
                pass
            if "error" in message:
                raise RuntimeError(message["error"])
            return message["result"]

        for domain in ("Page", "Runtime", "Log", "Network"):
            await ask(f"{domain}.enable")
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 700}
        await ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await ask("Emulation.setEmulatedMedia", media=media, features=scheme)
        address = page.resolve().as_uri()
        await ask("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in events):
            await receive()
        answer = await ask(
            "Runtime.evaluate", expression=script.replace("WIDTH", str(width)), returnByValue=True, awaitPromise=True
        )
        found = answer["result"].get("value") or {}
        if screenshot is not None:
            shot = await ask("Page.captureScreenshot", captureBeyondViewport=True)
            screenshot.write_bytes(base64.b64decode(shot["data"]))
        if pdf is not None:
            printed = await ask("Page.printToPDF", printBackground=True)
            pdf.write_bytes(base64.b64decode(printed["data"]))
        socket.close()
        return {**found, **_said(events, address)}


def _said(events: list[dict], address: str) -> dict:
    asked = {e["params"]["requestId"]: e["params"]["request"]["url"]
             for e in events if e["method"] == "Network.requestWillBeSent"}  # fmt: skip
    return {
        "errors": [
            json.dumps(e["params"])
            for e in events
            if e["method"] in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
        ],
        "failed": [asked.get(e["params"]["requestId"], "?") for e in events if e["method"] == "Network.loadingFailed"],
        "requests": [url for url in asked.values() if not url.startswith("data:") and url != address],
    }
