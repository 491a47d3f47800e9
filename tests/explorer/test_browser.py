"""The page in headless Chromium: what it computes, what it shows, what it asks of the network."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from support.explorer import Site
from support.golden import relative_error
from vmamba.analysis.attention import attention_rows, block_scans
from vmamba.data.images import read_image
from vmamba.explorer.model import ReceptiveFieldModel
from vmamba.tasks.classification.prediction import eval_transform

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.slow

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 60_000  # milliseconds that a page may take on a busy machine


@dataclass
class Visit:
    """A page that is open, and what happened there that should not."""

    page: Page
    faults: list[str] = field(default_factory=list)

    def settled(self) -> None:
        """Wait until the page has shown everything."""
        playwright.expect(self.page.locator("#field-text")).to_contain_text("Half of it", timeout=SECONDS)
        playwright.expect(self.page.locator("body")).to_have_attribute("aria-busy", "false", timeout=SECONDS)

    def numbers(self) -> dict[str, object]:
        """What the page saves."""
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name="Save the numbers").click()
        return json.loads(Path(download.value.path()).read_text())  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium; on Debian: apt-get install chromium")
    with playwright.sync_playwright() as running:
        sandbox = [] if os.getuid() else ["--no-sandbox"]  # root has none
        chromium = running.chromium.launch(executable_path=program, args=sandbox)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(browser: Browser, server: str) -> Iterator[Visit]:
    """The page, opened; fails at the end for messages of errors and for requests to anywhere else."""
    context = browser.new_context(reduced_motion="reduce")
    page = context.new_page()
    visit = Visit(page)
    page.on("console", lambda message: visit.faults.append(message.text) if message.type != "log" else None)
    page.on("pageerror", lambda error: visit.faults.append(str(error)))
    context.on("requestfailed", lambda request: visit.faults.append(f"failed: {request.url}"))
    local = (server, f"blob:{server}", "data:")
    context.on("request", lambda r: None if r.url.startswith(local) else visit.faults.append(f"foreign: {r.url}"))
    page.goto(server)
    visit.settled()
    yield visit
    assert not visit.faults
    context.close()


def pixels_of(site: Site, picture: int) -> Tensor:
    return eval_transform(site.model, 48)(read_image(site.pictures[picture]))[None]


def test_predictions_are_those_of_pytorch(visit: Visit, site: Site) -> None:
    for picture in (1, 0):
        visit.page.get_by_role("button", name=f"picture {picture}").click()
        visit.settled()
        items = visit.page.locator("#classes li")
        got = {item.locator(".name").inner_text(): item.get_attribute("data-probability") for item in items.all()}
        with torch.no_grad():
            (expected,) = site.model(pixels_of(site, picture)).softmax(-1)
        assert len(got) == 3
        for i, probability in enumerate(expected.tolist()):
            assert float(got[f"class {i}"] or "nan") == pytest.approx(probability, abs=1e-4)


def test_click_shows_the_rows_and_the_receptive_field(visit: Visit, site: Site) -> None:
    page = visit.page
    images = pixels_of(site, 0)
    for i, name in enumerate(("stages.0.blocks.0", "stages.1.blocks.0")):
        page.locator("#blocks label").nth(i).click()
        size = 12 >> i
        box = page.locator("#picture").bounding_box()
        assert box is not None
        column, row = size - 3, 2
        page.locator("#picture").click(
            position={"x": (column + 0.5) / size * box["width"], "y": (row + 0.5) / size * box["height"]}
        )
        visit.settled()
        numbers = visit.numbers()
        assert (numbers["block"], numbers["token"], numbers["grid"]) == (name, [row, column], [size, size])
        routes = numbers["routes"]
        assert isinstance(routes, list)
        scans = block_scans(site.model, name, images)
        for entry, magnitude in (("row", False), ("magnitudes", True)):
            expected = attention_rows(scans, (row, column), magnitude=magnitude).flatten(1)
            assert relative_error(torch.tensor([route[entry] for route in routes]), expected) < 1e-4
        assert [route["name"] for route in routes] == [scan.name for scan in scans]
        # The strongest token of all is the first of the table.
        strongest = int(attention_rows(scans, (row, column), magnitude=True).sum(0).argmax())
        page.locator("summary").click()
        first = page.locator("#numbers tbody td").first.inner_text()
        assert first == f"row {strongest // size + 1}, column {strongest % size + 1}"
        page.locator("summary").click()

        tokens = [torch.zeros(1, *grid, 1) for grid in ReceptiveFieldModel(site.model).grids(images)]
        tokens[i][0, row, column] = 1
        energy = ReceptiveFieldModel(site.model)(images, *tokens).abs().sum(1).flatten()
        assert relative_error(torch.tensor(numbers["receptive_field"]), energy) < 1e-3


def test_maps_are_drawn(visit: Visit) -> None:
    """A route reaches what it has visited, and colours it."""
    page = visit.page
    page.locator("#row").fill("6")
    page.locator("#column").fill("6")
    page.locator("#column").press("Enter")
    visit.settled()
    read = """([map, y, x]) => {
        const canvas = document.querySelector(`figure[data-map="${map}"] canvas`);
        const at = (part, size) => Math.floor((part + 0.5) / 12 * size);
        const copy = new OffscreenCanvas(canvas.width, canvas.height).getContext('2d', { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        return [...copy.getImageData(at(x, canvas.width), at(y, canvas.height), 1, 1).data];
    }"""

    def colourful(name: str, row: int, column: int) -> bool:
        red, green, blue, _ = page.evaluate(read, [name, row, column])
        return max(red, green, blue) - min(red, green, blue) > 3

    assert colourful("0", 5, 4)  # along the rows: the token before
    assert not colourful("0", 5, 6)
    assert colourful("2", 5, 6)  # backward: the token after
    assert not colourful("2", 5, 4)
    assert colourful("sum", 5, 4)


def test_keyboard(visit: Visit) -> None:
    page = visit.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.locator("#picture").focus()
    for key in ("Home", "PageUp", "ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    visit.settled()
    assert (page.locator("#row").input_value(), page.locator("#column").input_value()) == ("3", "2")
    playwright.expect(page.locator("#status")).to_contain_text("Token in row 3, column 2 of 12 by 12: strongest row")
    page.locator("#blocks input").first.focus()
    page.keyboard.press("ArrowRight")
    visit.settled()
    assert page.locator("#row").input_value() == "2"  # the same place in a coarser grid
    page.locator("#signed").focus()
    page.keyboard.press("Space")
    assert page.locator("#signed").is_checked()
    for canvas in page.locator("figure canvas").all():
        assert (canvas.get_attribute("aria-label") or "").strip()


def test_picture_of_ones_own(visit: Visit, site: Site) -> None:
    visit.page.locator("#file").set_input_files(site.pictures[1])
    visit.settled()
    with torch.no_grad():
        expected = site.model(pixels_of(site, 1)).softmax(-1).max()
    best = visit.page.locator("#classes li").first
    assert float(best.get_attribute("data-probability") or "nan") == pytest.approx(float(expected), abs=1e-4)
    assert visit.page.locator("#thumbnails [aria-pressed=true]").count() == 0

    visit.page.locator("#file").set_input_files({"name": "notes.png", "mimeType": "image/png", "buffer": b"no picture"})
    playwright.expect(visit.page.get_by_role("alert")).to_contain_text("no picture that your browser can read")


def test_page_without_pictures_asks_for_one(visit: Visit, site: Site) -> None:
    page = visit.page
    content = json.loads((site.folder / "site.json").read_text())
    content["models"][0]["images"] = []
    page.route("**/site.json", lambda route: route.fulfill(json=content))
    page.reload()
    playwright.expect(page.locator("#invitation")).to_contain_text("Choose a picture", timeout=SECONDS)
    playwright.expect(page.get_by_role("alert")).to_be_hidden()
    for hidden in ("#rows", "#field", ".position"):
        playwright.expect(page.locator(hidden)).to_be_hidden()
    with page.expect_file_chooser() as chooser:
        page.locator("#invitation").click()
    chooser.value.set_files(site.pictures[0])
    visit.settled()
    playwright.expect(page.locator("#invitation")).to_be_hidden()
    assert page.locator("#classes li").count() == 3


def test_model_that_is_missing(visit: Visit) -> None:
    page = visit.page
    page.route("**/model.onnx", lambda route: route.fulfill(status=404))
    page.reload()
    playwright.expect(page.get_by_role("alert")).to_have_text("models/0/model.onnx is missing (404)", timeout=SECONDS)
    playwright.expect(page.locator("#invitation")).to_contain_text("could not be loaded")
    visit.faults.clear()  # the browser's own message


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_page(width: int, visit: Visit) -> None:
    visit.page.set_viewport_size({"width": width, "height": 800})
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width


def test_foreign_requests_are_refused_by_the_page(visit: Visit) -> None:
    refused = "fetch('https://example.org/').then(() => 'sent', () => 'refused')"
    assert visit.page.evaluate(refused) == "refused"
    assert any("Content Security Policy" in fault for fault in visit.faults)
    visit.faults.clear()
