"""A night started by hand, as a person does it: in the UI, in a real browser."""

import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import matplotlib.image
import numpy as np
import pytest
from conftest import tiny_recipe, weather_rows
from playwright.sync_api import ConsoleMessage, Locator, Page, Route, expect, sync_playwright
from server import SECONDS, Office, until

from pipeline.config import IngestConfig
from pipeline.ingest import ingest
from pipeline.promotion.register import train
from pipeline.workspace import Workspace

SWITCHES = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 1000 * SECONDS  # in milliseconds
COMPLETED = [0.13, 0.62, 0.29]  # the colour of a bar in the graph whose run is completed,
STRIP = 16  # and of the strip at the foot of the graph, in pixels
NIGHT = "2026-03-07"
ROWS = 30

# The UI asks for the configuration of its maker's analytics even where they are switched off; nothing else leaves.
ANALYTICS = "sr-client-cfg.amplitude.com"
# What the pages of Prefect 3.9 complain of by themselves; whatever else they say fails the tests.
KNOWN = re.compile(
    f"https://{ANALYTICS}/"  # not let through here
    r"|/(scheduled|pending|running|completed)\.svg: .*404"  # icons of the graph, looked for in the wrong folder,
    r"|/favicon-\d+x\d+\.png: .*404"  # and that of the page
    r"|/api/task_runs/filter: .*422"  # of a report by a flow, the task that made it
    r"|/create_flow_run: .*409|Error creating flow run: Validation failed"  # how a wrong value is refused
    r"|: .*503|Unknown error while"  # of a database that was busy; asked again
    r"|^Cannot read properties of null \(reading '(addChild|x)'\)$"  # of the graph, if its page is left while it draws
)


@dataclass
class Visit:
    """A person's look at the UI, and what the browser had to say of it."""

    page: Page
    office: Office
    errors: list[str] = field(default_factory=list)
    other_hosts: set[str] = field(default_factory=set)

    @property
    def home(self) -> str:
        return str(self.office.api.base_url).removesuffix("/api/")

    def note(self, message: ConsoleMessage) -> None:
        if message.type == "error":
            self.note_error(f"{message.location['url']}: {message.text}")

    def note_error(self, line: str) -> None:
        if not KNOWN.search(line):
            self.errors.append(line)

    def pass_on(self, route: Route) -> None:
        if route.request.url.startswith(self.home):
            route.continue_()
        else:
            self.other_hosts.add(route.request.url.split("/")[2])
            route.abort()

    def runs(self) -> int:
        """Return how many runs the deployment has that are not the schedule's."""
        deployment = {"id": {"any_": [self.office.deployment("nightly")["id"]]}}
        found = self.office.find("flow_runs", deployments=deployment)
        return sum(not run["auto_scheduled"] for run in found)

    def input(self, title: str, role: str = "textbox") -> Locator:
        return self.page.get_by_role(role, name=f"{title} (Optional)", exact=True)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with a model, and the file of a night beside it."""
    root = tmp_path_factory.mktemp("browser")
    place = Workspace(root / "workspace")
    for name, rows in (("labelled", weather_rows()), ("news", weather_rows(ROWS))):
        file = root / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ingest(place, [str(root / "labelled.jsonl")], IngestConfig(), batch_id="labelled")
    train(place, "weather", tiny_recipe(epochs=2))
    return root


@pytest.fixture(scope="session")
def chromium() -> str:
    """Return where the browser is, before anything is started for it."""
    found = shutil.which("chromium")
    if found:
        return found
    missing = "needs Chromium: apt-get install chromium"
    if os.environ.get("NIGHTLABEL_ALL_TESTS") == "1":
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="module")
def visit(chromium: str, office: Office) -> Iterator[Visit]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=SWITCHES)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        visit = Visit(page, office)
        page.on("console", visit.note)
        page.on("pageerror", lambda error: visit.note_error(str(error)))
        page.route("**/*", visit.pass_on)
        yield visit
        browser.close()


@pytest.fixture(scope="module")
def night(visit: Visit, home: Path) -> str:
    """A night started in its form; return the address of its page, on which it was watched to its end."""
    open_form(visit)
    files = visit.page.locator(".group", has=visit.page.get_by_text("New files (Optional)", exact=True))
    files.get_by_role("button", name="Add item").click()
    files.get_by_role("textbox").fill(str(home / "news.jsonl"))
    visit.input("Date").fill(NIGHT)
    visit.input("Workspace folder").fill(str(home / "workspace"))
    submit(visit, "create_flow_run")
    visit.page.get_by_role("button", name="View run").click()
    expect(visit.page.get_by_role("tab", name="Artifacts")).to_be_visible()
    expect(visit.page.get_by_text(re.compile("^(Completed|Failed|Crashed)$")).first).to_have_text("Completed")
    return visit.page.url


def open_form(visit: Visit) -> None:
    """Come to the form of a night as a person does."""
    visit.page.goto(visit.home)
    visit.page.get_by_role("link", name="Deployments").click()
    visit.page.locator("a[href*='/deployments/deployment/']", has_text=re.compile("^nightly$")).click()
    visit.page.get_by_role("button", name="Run", exact=True).click()
    visit.page.get_by_role("menuitem", name="Custom run").click()
    expect(visit.page.get_by_role("heading", name="Parameters")).to_be_visible()


def submit(visit: Visit, asked: str) -> None:
    """Press the button, again while the server's database is busy.

    Args:
        visit: on the form.
        asked: the end of the address that the form sends its values to.
    """

    def is_answered() -> bool:
        with visit.page.expect_response(re.compile(f"/{asked}$")) as answer:
            visit.page.get_by_role("button", name="Submit").click()
        return answer.value.status != httpx.codes.SERVICE_UNAVAILABLE

    until(is_answered, "the database stayed busy")


def test_a_wrong_value_is_refused_in_the_form_with_a_message(visit: Visit) -> None:
    open_form(visit)
    before = visit.runs()
    review = visit.input("Review below", "spinbutton")
    review.fill("7")
    visit.page.get_by_role("button", name="Submit").click()
    expect(review).to_be_focused()
    assert review.evaluate("input => input.validationMessage") == "Value must be less than or equal to 1."
    review.fill("0.6")
    visit.input("Date").fill("7.3.2026")
    submit(visit, "ui/schemas/validate")
    expect(visit.page.get_by_role("paragraph").filter(has_text="'7.3.2026' does not match")).to_be_visible()
    assert visit.runs() == before


def test_a_night_started_in_the_form_is_labelled(visit: Visit, night: str, home: Path) -> None:
    labels = home / "workspace" / "labels" / "weather" / f"batch={NIGHT}" / "manifest.json"
    assert json.loads(labels.read_text(encoding="utf-8"))["counts"]["documents"] == ROWS
    visit.page.goto(night)
    expect(visit.page.get_by_text(f"nightly {NIGHT}: news.jsonl", exact=True)).to_be_visible()


def test_the_report_of_the_night_is_found_from_its_run_and_its_pictures_are_drawn(visit: Visit, night: str) -> None:
    visit.page.goto(night)
    visit.page.get_by_role("tab", name="Artifacts").click()
    visit.page.get_by_role("link", name=f"The night of {NIGHT}").click()
    expect(visit.page.get_by_role("heading", name=f"Night of {NIGHT}")).to_be_visible()
    expect(visit.page.get_by_role("listitem").get_by_text("every row is accounted for")).to_be_visible()
    pictures = visit.page.get_by_role("main").get_by_role("img", name=re.compile("."))
    expect(pictures.nth(1)).to_be_visible()
    until(lambda: all(one.evaluate("img => img.naturalWidth") for one in pictures.all()), "a picture is not drawn")


def test_the_graph_shows_a_bar_for_the_ingest_and_one_for_the_labelling(visit: Visit, night: str) -> None:
    visit.page.goto(night)
    graph = visit.page.locator("canvas")

    def two_bars() -> bool:
        pixels = matplotlib.image.imread(io.BytesIO(graph.screenshot()))[:-STRIP, :, :3]
        has_bar = np.all(np.abs(pixels - COMPLETED) < 0.02, axis=-1).any(axis=1)
        return np.count_nonzero(np.diff(has_bar.astype(int)) == 1) == 2

    until(two_bars, "the graph does not show two runs that are completed")


@pytest.mark.usefixtures("night")
def test_the_pages_had_nothing_to_complain_of_and_asked_nobody_else(visit: Visit) -> None:
    assert "\n".join(visit.errors) == ""
    assert visit.other_hosts <= {ANALYTICS}
