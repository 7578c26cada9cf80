"""The server as a process: a real browser, hostile clients, and how it stops."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("fastapi")

from resnetlab.data.pack import Pack
from resnetlab.inference.export import default_folder
from resnetlab.inference.predictor import Predictor
from resnetlab.run_folder import RunFolder
from tests.data import make_images

Trained = tuple[RunFolder, Path, Pack]
CHROMIUM = Path("/usr/bin/chromium")
CHROMIUM_OPTIONS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SECONDS = 1.0  # --timeout of the server of an export
ATTACKS = 300


class Server:
    """`resnetlab serve` in a process of its own."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "resnetlab.cli", "serve", *map(str, arguments), "--port", "0", "--json"]
        self.process = subprocess.Popen(
            [*command, "--device", "cpu"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        text = ""
        assert self.process.stdout is not None
        while not text.endswith("}\n"):
            line = self.process.stdout.readline()
            assert line, self.process.communicate()[1]
            text += line
        self.url: str = json.loads(text)["url"]
        self.port = int(self.url.rpartition(":")[2])

    def post(self, content: bytes, query: str = "") -> Any:
        request = urllib.request.Request(f"{self.url}/predict{query}", content, {"Content-Type": "image/jpeg"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def stop(self) -> tuple[int, str]:
        """Its exit code, and what it wrote to stderr."""
        self.process.send_signal(signal.SIGTERM)
        try:
            error = self.process.communicate(timeout=30)[1]
        finally:
            self.process.kill()
        return self.process.returncode, error

    def connection(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)


@contextmanager
def server(*arguments: object) -> Iterator[Server]:
    started = Server(*arguments)
    try:
        yield started
    finally:
        started.process.kill()
        started.process.communicate()


@pytest.fixture(scope="module")
def export(trained: Trained) -> Path:
    Predictor(trained[0], engine="onnx")  # which exports
    return default_folder(trained[0], "onnx", "float32")


@pytest.fixture(scope="module")
def impatient(export: Path) -> Iterator[Server]:
    with server(export, "--timeout", SECONDS, "--max-megabytes", 4) as started:
        yield started


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    return importlib.import_module("hostile")


def memory(process: subprocess.Popen[str]) -> int:
    """Bytes that a process holds."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def test_hostile_requests_are_refused_and_the_next_good_one_is_answered_as_before(
    impatient: Server, hostile: ModuleType
) -> None:
    photo = make_images.jpeg(1, (300, 225))
    before, held = impatient.post(photo), memory(impatient.process)
    outcome = asyncio.run(hostile.assault(impatient.port, photo, count=ATTACKS, side_by_side=16, patience=20))
    assert outcome.wrong == []
    assert outcome.counts.total() == ATTACKS
    assert len({kind for kind, _ in outcome.counts}) >= 34
    assert outcome.counts["decompression bomb, PNG", "413"] > 0
    assert outcome.counts["slow body", "408"] > 0
    assert outcome.counts["slow head", hostile.CLOSED] > 0
    assert impatient.post(photo) == before
    if sys.platform == "linux":
        assert memory(impatient.process) < held + 300e6


def received(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    content = b""
    with suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            content += part
    return content


def test_a_connection_that_sends_nothing_or_goes_on_after_its_answer_is_closed(impatient: Server) -> None:
    with impatient.connection() as silent, impatient.connection() as endless:
        endless.sendall(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n")
        began = time.monotonic()
        assert received(silent) == b""
        answer = received(endless)
        assert answer.startswith(b"HTTP/1.1 404 ")
        assert answer.count(b"HTTP/1.1") == 1
        assert time.monotonic() - began < 15


def test_one_connection_takes_many_requests_also_after_a_refusal(impatient: Server) -> None:
    photo = make_images.jpeg(2)
    head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    with impatient.connection() as connection:
        for kind in (b"text/plain", b"image/jpeg") * 2:
            connection.sendall(head % (kind, len(photo)) + photo)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        answers = received(connection)
    statuses = [part[:3] for part in answers.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"415", b"200", b"415", b"200", b"200"]


def refuses_connections(started: Server, *, within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            started.connection().close()
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_it_stops_with_code_0_after_the_requests_that_were_accepted(export: Path) -> None:
    photo = make_images.jpeg(2)
    with server(export) as started:
        with started.connection() as connection:
            head = (
                b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
            )
            connection.sendall(head % len(photo) + photo[:100])
            time.sleep(0.3)
            started.process.send_signal(signal.SIGTERM)
            assert refuses_connections(started, within=10)
            connection.sendall(photo[100:])
            assert b'"classes":' in received(connection)
        assert started.process.wait(20) == 0
        assert started.process.communicate()[1] == ""


def test_an_address_that_others_reach_is_warned_of(export: Path) -> None:
    with server(export, "--host", "0.0.0.0") as started:
        request = urllib.request.Request(f"http://127.0.0.1:{started.port}/healthz", headers={"Host": "any.example"})
        assert urllib.request.urlopen(request, timeout=10).status == 200
        code, error = started.stop()
    assert code == 0
    assert "warning: 0.0.0.0 can be reached from other machines, and there is no authentication" in " ".join(
        error.split()
    )


# ------------------------------------------------------------------------------------------------ the page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: on Debian, apt install chromium")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=CHROMIUM_OPTIONS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def of_a_run(trained: Trained, export: Path) -> Iterator[Server]:
    with server(trained[0].path) as started:
        yield started


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[[Server], Any]]:
    """Open a server's page; nothing may be fetched from elsewhere, and no script may fail."""
    pages, complaints = [], []

    def open_(started: Server) -> Any:
        page = browser.new_page()
        pages.append(page)
        page.on("request", lambda request: complaints.extend(_elsewhere(request.url, started.url)))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.extend(_refused_by_the_policy(message.text)))
        page.goto(started.url)
        page.wait_for_selector("#model:has-text('resnet-tiny')")
        return page

    yield open_
    for page in pages:
        page.close()
    assert complaints == []


def _elsewhere(address: str, ours: str) -> list[str]:
    return [] if address.startswith((ours, "data:", "blob:")) else [address]


def _refused_by_the_policy(message: str) -> list[str]:
    return [message] if "Content Security Policy" in message else []


def drop(page: Any, name: str, content: bytes, type: str) -> None:
    """Drop a file on the page, as a user does from a folder."""
    transfer = page.evaluate_handle(
        "([name, bytes, type]) => { const transfer = new DataTransfer();"
        " transfer.items.add(new File([new Uint8Array(bytes)], name, {type})); return transfer; }",
        [name, list(content), type],
    )
    page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})


def loaded(page: Any, selector: str) -> bool:
    return bool(page.eval_on_selector(selector, "async (i) => { await i.decode(); return i.naturalWidth > 0; }"))


@pytest.mark.long
def test_an_image_that_is_dropped_is_answered_with_bars_and_overlay(
    open_page: Callable[[Server], Any], of_a_run: Server
) -> None:
    photo = make_images.jpeg(5, (64, 48))
    expected = of_a_run.post(photo, "?top=3")["predictions"][0]["classes"]
    page = open_page(of_a_run)
    drop(page, "<b>bird</b>.jpg", photo, "image/jpeg")
    page.wait_for_selector("article")
    first = f"{100 * expected[0]['probability']:.1f} %"
    assert page.inner_text("article h2") == f"<b>bird</b>.jpg: {expected[0]['class']}, {first}"
    rows = page.eval_on_selector_all(
        "tbody tr",
        "rows => rows.map(r => [...r.cells].map(c => c.textContent).concat(r.querySelector('.bar').style.width))",
    )
    for (name, shown, width), each in zip(rows, expected, strict=True):
        assert (name, shown) == (each["class"], f"{100 * each['probability']:.1f} %")
        assert float(width.rstrip("%")) == pytest.approx(100 * each["probability"], abs=0.01)
    assert loaded(page, ".sent")
    assert loaded(page, ".overlay")
    assert page.get_attribute(".overlay", "alt").startswith(f"where the evidence for {expected[0]['class']} is")
    assert expected[0]["class"] in page.inner_text("[role=status]")


@pytest.mark.long
def test_a_text_file_is_an_error_that_is_announced_and_the_next_image_clears_it(
    open_page: Callable[[Server], Any], of_a_run: Server
) -> None:
    page = open_page(of_a_run)
    drop(page, "notes.txt", b"no image", "text/plain")
    page.wait_for_selector("[role=alert] p")
    assert page.inner_text("[role=alert]") == "notes.txt: not an image"
    assert page.query_selector("article") is None
    drop(page, "bird.jpg", make_images.jpeg(6), "image/jpeg")
    page.wait_for_selector("article")
    assert page.inner_text("[role=alert]") == ""


@pytest.mark.long
def test_the_page_is_used_by_keyboard_alone_and_by_pasting(
    open_page: Callable[[Server], Any], of_a_run: Server, tmp_path: Path
) -> None:
    photo = tmp_path / "bird.jpg"
    photo.write_bytes(make_images.jpeg(7))
    page = open_page(of_a_run)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.labels[0].textContent") == "choose files"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")
    chooser.value.set_files([str(photo)])
    page.wait_for_selector("article")
    page.evaluate(
        "bytes => { const clipboardData = new DataTransfer();"
        " clipboardData.items.add(new File([new Uint8Array(bytes)], 'image.png', {type: 'image/png'}));"
        " dispatchEvent(new ClipboardEvent('paste', {clipboardData})); }",
        list(make_images.alpha_png()),
    )
    page.wait_for_selector("article:nth-of-type(2)")
    assert page.inner_text("article h2").startswith("image.png: ")


def test_an_export_says_on_its_page_that_it_has_no_overlays(
    open_page: Callable[[Server], Any], impatient: Server
) -> None:
    page = open_page(impatient)
    assert "serve the run folder instead" in page.inner_text("#overlays")
    drop(page, "bird.jpg", make_images.jpeg(6), "image/jpeg")
    page.wait_for_selector("article")
    assert page.query_selector(".overlay") is None
