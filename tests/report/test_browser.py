"""The report in a browser: it runs without an error or a request, and what can be clicked does what it says."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import resnetlab as rl
from tests.data import make_images

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed: pip install playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt install chromium")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("browser")
    folder = make_images.write_classes(root / "photos", {"cat": 10, "dog": 14, "great white shark": 20})
    settings = {"model": "resnet-tiny", "image_size": 16, "batch_size": 8, "epochs": 3, "early_stopping": 0}
    run = rl.train(folder, run=root / "run", progress=None, test=0.4, class_weights=False, **settings)
    run.evaluate(progress=None)
    return run.path / "report.html"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # As root, Chromium starts only without its sandbox; the page is our own.
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The report, opened; at the end of the test there must have been no message, no error and no request."""
    opened = browser.new_page(viewport={"width": 1280, "height": 900})
    messages: list[str] = []
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.on("request", lambda request: messages.append(request.url))
    opened.goto(report.as_uri())
    yield opened
    assert [message for message in messages if not message.startswith(("data:", "file:"))] == []
    assert report.as_uri() in messages
    opened.close()


def column(page: Any, number: int) -> list[str]:
    cells: list[str] = page.locator(".wide[aria-label=classes] tbody tr").evaluate_all(
        f"rows => rows.map(row => row.cells[{number}].textContent.trim())"
    )
    return cells


def test_the_table_of_classes_is_sorted_by_a_click(page: Any) -> None:
    assert column(page, 0) == ["cat", "dog", "great white shark"]
    images = page.locator(".wide[aria-label=classes] th", has_text="images")
    counts = [int(count) for count in column(page, 1)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]
    images.locator("button").click()
    assert images.get_attribute("aria-sort") == "descending"
    assert [int(count) for count in column(page, 1)] == sorted(counts, reverse=True)
    images.locator("button").press("Enter")
    assert [int(count) for count in column(page, 1)] == sorted(counts)


def test_the_values_under_the_pointer_are_in_the_legend(page: Any, report: Path) -> None:
    records = rl.load(report.parent).history
    chart = page.locator("#chart-rate")
    chart.scroll_into_view_if_needed()
    legend = chart.locator(".u-legend")
    assert re.findall(r"[\d.]+", legend.inner_text()) == []
    plot = chart.locator(".u-over")
    box = plot.bounding_box()
    for epoch, place in enumerate((1, box["width"] / 2, box["width"] - 1), start=1):
        plot.hover(position={"x": place, "y": box["height"] / 2})
        shown = [float(value) for value in re.findall(r"[\d.]+", legend.inner_text())]
        assert shown == [epoch, pytest.approx(records[epoch - 1]["learning_rate"], rel=1e-3)]
        loss = re.findall(r"[\d.]+", page.locator("#chart-loss .u-legend").inner_text())  # the charts have one pointer
        assert float(loss[1]) == pytest.approx(records[epoch - 1]["loss"], rel=1e-3)


def test_an_image_opens_large_and_closes(page: Any) -> None:
    dialog = page.locator("dialog")
    assert not dialog.is_visible()
    button = page.locator(".gallery button").first
    small = button.locator("img").first
    button.click()
    assert dialog.is_visible()
    large = dialog.locator("img")
    assert large.count() == 2  # the image and its map
    assert large.first.get_attribute("src") == small.get_attribute("src")
    assert large.first.bounding_box()["width"] > 2 * small.bounding_box()["width"]
    dialog.locator("button").click()
    assert not dialog.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_wider_than_the_screen(page: Any, scheme: str) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    page.emulate_media(color_scheme=scheme)
    page.reload()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    widths = page.locator("main > *, .curves canvas").evaluate_all(
        "all => all.map(e => e.getBoundingClientRect().right)"
    )
    assert max(widths) <= 390
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) > 3 * 128) == (scheme == "light")
