"""Takes the pictures of the UI in deploy/pictures/, from a real night over the demo's tickets.

For maintainers, in the project's root, on a machine with Chromium: uv run python deploy/screenshots.py
"""

import io
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx
import matplotlib.image
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from flows.demo.corpus import write_tickets

T = TypeVar("T")
PICTURES = Path("deploy", "pictures")
WIDTH = 1280
SECONDS = 300.0  # for anything that is waited for
NIGHT_ROWS = 120_000  # three parts
TEXT, ID = ["subject", "body"], "id"
COLUMNS = {"text": TEXT, "id": ID}
NIGHTS = ("2026-11-19", "2026-11-20")
GREEN = (33, 157, 75)  # what is completed, in the graph


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nightlabel-") as folder, nightlabel_up(Path(folder)) as url:
        labelled, *nights = write_files(Path(folder))
        with httpx.Client(base_url=f"{url}/api", timeout=120) as api:
            run(api, "ingest", sources=[labelled], batch="labelled", config={**COLUMNS, "label": "queue"})
            run(api, "train", model="tickets", settings=["training.epochs=4"], target_precision=0.95)
            run(api, "nightly", sources=[nights[0]], date=NIGHTS[0], ingest_config=COLUMNS)
        with chromium(url) as page:
            take_pictures(page, url, nights[1])
    for picture in sorted(PICTURES.glob("*.png")):
        print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


def write_files(folder: Path) -> tuple[str, str, str]:
    """Return where labelled tickets lie, and those of two nights; of the second as a form is told of it."""
    first = write_tickets(folder / "first", night=NIGHT_ROWS * 9 // 10)
    second = write_tickets(folder / "second", labelled=100, night=NIGHT_ROWS, seed=8)
    incoming = folder / "incoming"
    (incoming / NIGHTS[1]).mkdir(parents=True)
    second.night.rename(incoming / NIGHTS[1] / "tickets.csv")
    return str(first.tickets), str(first.night), str(incoming / "{date}" / "tickets.csv")


@contextmanager
def nightlabel_up(folder: Path) -> Iterator[str]:
    """Yield the address of a server of our own, with deployments and a worker; stop all of it at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT", "NIGHTLABEL"))}
    command = [sys.executable, "-m", "flows.cli", "up", "--port", str(port), "--workspace", str(folder / "workspace")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        for line in process.stdout:
            print(line, end="")
            if "the UI is at" in line:
                break
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=SECONDS)


def run(api: httpx.Client, name: str, **parameters: Any) -> None:
    """Run a deployment to its end.

    Raises:
        RuntimeError: it did not complete.
    """
    deployment = api.get(f"/deployments/name/{name}/{name}").raise_for_status().json()
    body = {"parameters": parameters}
    created = api.post(f"/deployments/{deployment['id']}/create_flow_run", json=body).raise_for_status().json()

    def ended() -> dict[str, Any] | None:
        found: dict[str, Any] = api.get(f"/flow_runs/{created['id']}").raise_for_status().json()
        return found if found["state_type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"} else None

    found = until(ended)
    print(f"{found['name']}: {found['state']['name']}. {found['state']['message'] or ''}")
    if found["state_type"] != "COMPLETED":
        raise RuntimeError(f"{name} did not complete")


def until(poll: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if found := poll():
            return found
        time.sleep(0.5)
    raise TimeoutError(f"nothing within {SECONDS:.0f} s")


@contextmanager
def chromium(url: str) -> Iterator[Page]:
    """Yield a page of a browser that asks no other host."""
    path = shutil.which("chromium")
    if path is None:
        raise SystemExit("needs Chromium: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(SECONDS * 1000)
        page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(url) else route.abort())
        yield page
        browser.close()


def take_pictures(page: Page, url: str, night: str) -> None:
    fill_form(page, url, night)
    picture(page, "form", 1180)
    page.get_by_role("button", name="Submit").click()
    page.get_by_role("button", name="View run").click()
    page.get_by_role("tab", name="Artifacts").wait_for()
    page.get_by_text("Completed", exact=True).first.wait_for()
    address = page.url
    page.goto(address)  # the graph of a run that was watched does not always show what came last
    open_graph(page)
    picture(page, "graph", 620)
    page.goto(address)
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_role("link", name=f"The night of {NIGHTS[1]}").click()
    page.get_by_role("heading", name=f"Night of {NIGHTS[1]}").wait_for()
    picture(page, "report", 1180)
    page.get_by_role("heading", name="Are the labels right?").evaluate("heading => heading.scrollIntoView()")
    picture(page, "figures", 1180)


def fill_form(page: Page, url: str, night: str) -> None:
    page.set_viewport_size({"width": WIDTH, "height": 900})
    page.goto(f"{url}/v2/deployments")
    page.locator("a[href*='/deployments/deployment/']", has_text=re.compile("^nightly$")).click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Custom run").click()
    add(page, "New files", [night])
    page.get_by_label("Date (Optional)").fill(NIGHTS[1])
    add(page, "Text columns", TEXT)
    page.get_by_label("Id column (Optional)").fill(ID)
    page.get_by_label("Id column (Optional)").blur()
    page.get_by_label("Run Name").scroll_into_view_if_needed()


def add(page: Page, title: str, values: list[str]) -> None:
    """Write values into a list of the form, whatever stands there."""
    items = page.locator(".group", has=page.get_by_text(f"{title} (Optional)", exact=True)).last
    for number, value in enumerate(values):
        if items.get_by_role("textbox").count() <= number:
            items.get_by_role("button", name="Add item").click()
        items.get_by_role("textbox").nth(number).fill(value)


def open_graph(page: Page) -> None:
    """Show the run's graph in the whole window, with what the score run did inside."""
    graph = page.locator("canvas")
    bars = until(lambda: bars_of(graph.screenshot()))
    graph.click(position={"x": bars[-1][0] + 16, "y": bars[-1][1]})
    buttons = page.get_by_role("main").get_by_role("button").filter(has=page.locator("svg"))
    buttons.nth(2).click()


def bars_of(screenshot: bytes) -> list[tuple[float, float]]:
    """Return left edge and middle of each bar of a run that is completed, from top to bottom."""
    pixels = matplotlib.image.imread(io.BytesIO(screenshot))[..., :3] * 255
    green: NDArray[np.bool_] = np.all(np.abs(pixels - GREEN) < 3, axis=-1)
    rows = np.flatnonzero(green.any(axis=1))
    bars = [bar for bar in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1) if len(bar) > 20]
    return [(float(np.flatnonzero(green[bar].any(axis=0))[0]), float(bar.mean())) for bar in bars]


def picture(page: Page, name: str, height: int) -> None:
    page.set_viewport_size({"width": WIDTH, "height": height})
    page.mouse.move(0, 0)
    page.wait_for_timeout(2000)  # for what moves to come to rest
    shot = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    shot.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(PICTURES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
