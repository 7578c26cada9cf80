"""The HTTP interface: the answers are those of `predict`, and what is wrong is answered with the right status."""

from __future__ import annotations

import asyncio
import base64
import io
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnxruntime")
pytest.importorskip("fastapi")

from fastapi.testclient import TestClient

from resnetlab.data.pack import Pack
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.inference.export import default_folder
from resnetlab.inference.images import ImageInput
from resnetlab.inference.predictor import Predictor
from resnetlab.progress import LogProgress
from resnetlab.run import Run
from resnetlab.run_folder import RunFolder
from resnetlab.server import serve as serving
from resnetlab.server.app import create_app
from resnetlab.server.batching import Batcher, QueueFull
from resnetlab.server.limits import Limits
from resnetlab.server.model import ServedModel, of_export, of_run
from resnetlab.server.serve import serve
from tests.data import make_images

Trained = tuple[RunFolder, Path, Pack]
JPEG = {"content-type": "image/jpeg"}
FORM = {"content-type": "multipart/form-data; boundary=x"}


@pytest.fixture(scope="module")
def model(trained: Trained) -> ServedModel:
    return of_run(Predictor(trained[0], engine="onnx"), "onnx", "float32", explainer=Predictor(trained[0]))


@pytest.fixture(scope="module")
def client(model: ServedModel) -> Iterator[TestClient]:
    with client_of(model) as client:
        yield client


def client_of(model: ServedModel, **limits: Any) -> TestClient:
    return TestClient(create_app(model, Limits(**limits), hosts=["testserver"]), raise_server_exceptions=False)


def photographs(trained: Trained) -> list[Path]:
    return sorted(trained[1].rglob("*.jpg"))


def test_answers_are_those_of_predict_raw_and_in_a_form(client: TestClient, trained: Trained) -> None:
    paths = photographs(trained)[::4]
    expected = list(Predictor(trained[0]).predict((ImageInput(str(p), p) for p in paths), top=2))
    form = [("images", (path.name, path.read_bytes(), "image/jpeg")) for path in paths]
    together = client.post("/predict?top=2", files=form).json()["predictions"]
    for path, prediction, answer in zip(paths, expected, together, strict=True):
        assert answer["name"] == path.name
        assert [each["class"] for each in answer["classes"]] == [name for name, _ in prediction.top]
        assert [e["probability"] for e in answer["classes"]] == pytest.approx([p for _, p in prediction.top], abs=1e-4)
        (alone,) = client.post("/predict?top=2", content=path.read_bytes(), headers=JPEG).json()["predictions"]
        assert alone["classes"][0]["class"] == answer["classes"][0]["class"]
        assert "name" not in alone


def test_an_overlay_is_the_picture_of_explain(client: TestClient, model: ServedModel, trained: Trained) -> None:
    from resnetlab.inference.explanation import explanations

    path = photographs(trained)[0]
    answer = client.post("/predict?overlay=true", content=path.read_bytes(), headers=JPEG).json()["predictions"][0]
    kind, _, content = answer["overlay"].partition(",")
    assert kind == "data:image/png;base64"
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))), int)
    (made,) = explanations(Predictor(trained[0]), [ImageInput(str(path), path)])
    assert drawn.shape == (model.image_size, model.image_size, 3)
    assert np.abs(drawn - np.asarray(made.overlay, int)).max() <= 2


def test_one_bad_image_among_others_is_a_problem_of_its_own(client: TestClient) -> None:
    good, cut = make_images.jpeg(3), make_images.jpeg(3)[:500]
    form = [("x", ("a.jpg", good)), ("x", ("b.jpg", cut)), ("y", ("c.png", make_images.enormous_png()))]
    answer = client.post("/predict", files=form)
    assert answer.status_code == 200
    first, second, third = answer.json()["predictions"]
    assert len(first["classes"]) == 3
    assert second == {"name": "b.jpg", "problem": "truncated"}
    assert third["problem"].startswith("too many pixels (20000x20000; the limit is 50,000,000)")


@pytest.mark.parametrize(
    ("request_", "status", "told"),
    [
        ({"content": b"hello", "headers": {"content-type": "text/plain"}}, 415, "Received text/plain"),
        ({"json": [[[]]]}, 415, "Received application/json"),
        ({"content": b"hello"}, 422, "the image: not an image"),
        ({"content": b""}, 422, "Received no image"),
        ({"content": b"x" * 400_001}, 413, "more than 0.4 MB"),
        ({"content": iter([make_images.jpeg(1)])}, 411, "Received no Content-Length"),
        ({"content": make_images.enormous_png(), "headers": JPEG}, 413, "too many pixels (20000x20000"),
        ({"content": b"x", "headers": JPEG | {"content-encoding": "gzip"}}, 415, "Content-Encoding"),
        ({"files": [("x", (f"{k}.jpg", b"x")) for k in range(4)]}, 413, "more than 3 images"),
        ({"files": [("x", (f"{k}.jpg", b"x")) for k in range(400)]}, 413, "more than 3 images"),
        ({"files": {"x": ("a.txt", b"text")}}, 422, "a.txt: not an image"),
        ({"data": {"a": "b"}, "files": {}}, 415, "x-www-form-urlencoded"),
        ({"content": b"--x--\r\n", "headers": FORM}, 422, "without files"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "Missing boundary"),
        ({"content": b"x", "params": {"top": 0}}, 422, "greater_than_equal"),
    ],
)  # fmt: skip
def test_what_is_wrong_has_a_status_and_a_reason(
    model: ServedModel, request_: dict[str, Any], status: int, told: str
) -> None:
    with client_of(model, max_megabytes=0.4, max_images=3) as client:
        answer = client.post("/predict", **request_)
        assert answer.status_code == status, answer.text
        assert told in answer.text
        assert client.post("/predict", content=make_images.jpeg(1), headers=JPEG).status_code == 200


def test_a_host_name_of_another_site_is_refused(client: TestClient) -> None:
    assert client.get("/model").status_code == 200
    assert client.get("/model", headers={"host": "rebound.example"}).status_code == 400


def slow(model: ServedModel, started: threading.Event, ended: threading.Event) -> ServedModel:
    def engine(images: np.ndarray) -> np.ndarray:
        started.set()
        assert ended.wait(20)
        return model.engine(images)

    return replace(model, engine=engine)


def test_too_many_requests_and_a_full_queue_are_answered_at_once(model: ServedModel) -> None:
    started, ended, image = threading.Event(), threading.Event(), make_images.jpeg(1)
    with (
        client_of(slow(model, started, ended), max_requests=2, max_waiting=2, batch_size=1) as client,
        ThreadPoolExecutor(4) as pool,
    ):

        def post(count: int) -> Any:
            return client.post("/predict", files=[("x", ("a.jpg", image))] * count)

        first = pool.submit(post, 1)
        assert started.wait(10)
        full = post(3)
        assert (full.status_code, full.headers["retry-after"]) == (503, "1")
        assert "images wait" in full.text
        second = pool.submit(post, 2)
        deadline = time.monotonic() + 10
        while client.get("/readyz").status_code == 200 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").json() == {"status": "ok"}
        third = post(1)
        assert (third.status_code, "at work on 2 requests" in third.text) == (503, True)
        ended.set()
        assert (first.result().status_code, second.result().status_code) == (200, 200)
        assert client.get("/readyz").status_code == 200


def test_an_answer_that_takes_too_long_is_given_up_and_its_images_are_not_computed(model: ServedModel) -> None:
    started, ended, sizes = threading.Event(), threading.Event(), []
    patient = slow(model, started, ended)

    def engine(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        return patient.engine(images)

    with client_of(replace(model, engine=engine), timeout=0.3) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.post, "/predict", content=make_images.jpeg(1), headers=JPEG)
        assert started.wait(10)
        second = client.post("/predict", files=[("x", ("a.jpg", make_images.jpeg(2)))] * 5)
        assert (second.status_code, first.result().status_code) == (504, 504)
        ended.set()
        assert client.post("/predict", content=make_images.jpeg(3), headers=JPEG).status_code == 200
    assert sizes == [1, 1]


def test_a_failure_of_the_engine_concerns_its_batch_only(model: ServedModel) -> None:
    broken = [True]

    def engine(images: np.ndarray) -> np.ndarray:
        if broken.pop() if broken else False:
            raise MemoryError("a secret path")
        return model.engine(images)

    with client_of(replace(model, engine=engine)) as client:
        failed = client.post("/predict", content=make_images.jpeg(1), headers=JPEG)
        assert (failed.status_code, "secret" in failed.text) == (500, False)
        assert client.post("/predict", content=make_images.jpeg(1), headers=JPEG).status_code == 200


def test_the_page_and_every_answer_forbid_what_they_do_not_need(client: TestClient) -> None:
    for path in ("/", "/page.css", "/page.js", "/model", "/nowhere"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
    page = client.get("/").text
    assert "http:" not in page
    assert "https:" not in page
    assert "style=" not in page
    assert client.get("/docs").status_code == 404


def test_the_schema_and_the_metrics_describe_what_happened(model: ServedModel) -> None:
    with client_of(model) as client:
        schema = client.get("/openapi.json").json()
        predict = schema["paths"]["/predict"]["post"]
        assert predict["requestBody"]["content"].keys() == {"multipart/form-data", "image/*"}
        assert {"200", "408", "413", "415", "422", "503", "504"} <= predict["responses"].keys()
        assert schema["components"]["schemas"]["ClassProbability"]["properties"].keys() == {"class", "probability"}
        client.post("/predict", files=[("x", ("a.jpg", make_images.jpeg(1)))] * 3 + [("x", ("b", b"no"))])
        client.get("/nowhere/1")
        client.get("/nowhere/2")
        lines = client.get("/metrics").text.splitlines()
        assert {
            'resnetlab_requests_total{path="/predict",status="200"} 1.0',
            'resnetlab_requests_total{path="other",status="404"} 2.0',
            "resnetlab_images_total 3.0",
            "resnetlab_unusable_images_total 1.0",
            "resnetlab_batch_images_sum 3.0",
            "resnetlab_waiting_images 0.0",
        } <= set(lines)


def test_an_export_is_served_without_overlays_and_without_keras(trained: Trained, model: ServedModel) -> None:
    folder = default_folder(trained[0], "onnx", "float32")
    path = photographs(trained)[0]
    with client_of(of_export(folder)) as client, client_of(model) as of_the_run:
        description = client.get("/model").json()
        assert (description["overlays"], description["classes"]) == (False, ["crane", "heron", "stork"])
        assert "serve the run folder" in description["no_overlays"]
        refused = client.post("/predict?overlay=1", content=path.read_bytes(), headers=JPEG)
        assert (refused.status_code, "no overlays" in refused.text) == (422, True)
        answers = [c.post("/predict", content=path.read_bytes(), headers=JPEG).json() for c in (client, of_the_run)]
        assert answers[0] == answers[1]
    program = (
        "import sys; from pathlib import Path; from resnetlab.server.model import of_export; "
        "from resnetlab.server.app import create_app; from resnetlab.server.limits import Limits; "
        f"create_app(of_export(Path({str(folder)!r})), Limits(), hosts=['*']); "
        "print([name for name in ('jax', 'keras', 'tensorflow', 'torch') if name in sys.modules])"
    )
    child = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (child.returncode, child.stdout) == (0, "[]\n"), child.stderr


def test_keras_too_computes_in_the_thread_of_the_batches(trained: Trained, model: ServedModel) -> None:
    path = photographs(trained)[0]
    keras = of_run(Predictor(trained[0]), "keras", "float32", explainer=None)
    with client_of(keras) as client, client_of(model) as other:
        for count in (1, 3):
            form = [("x", (path.name, path.read_bytes()))] * count
            received, expected = (c.post("/predict", files=form).json()["predictions"] for c in (client, other))
            for one, two in zip(received, expected, strict=True):
                assert one["classes"][0]["class"] == two["classes"][0]["class"]
                assert one["classes"][0]["probability"] == pytest.approx(two["classes"][0]["probability"], abs=1e-4)


def test_images_of_separate_requests_are_computed_together_and_none_twice() -> None:
    sizes: list[int] = []
    release = threading.Event()

    def engine(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        assert release.wait(10)
        return images[:, 0, 0, :1].astype(np.float32)

    batcher = Batcher(engine, largest=4, waiting=9)
    images = [np.full((2, 2, 3), value, np.uint8) for value in range(10)]
    futures = batcher.submit(images[:1])
    while not sizes:
        time.sleep(0.001)
    for image in images[1:6]:
        futures += batcher.submit([image])
    futures[3].cancel()
    with pytest.raises(QueueFull):
        batcher.submit(images[:5])
    futures += batcher.submit(images[6:])
    release.set()
    values = [future.result(10)[0] for future in futures if not future.cancelled()]
    batcher.close()
    assert values == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert sizes == [1, 4, 4]
    with pytest.raises(QueueFull):
        batcher.submit(images[:1])


def test_a_network_that_fails_is_not_ready_until_it_computes_again(model: ServedModel, trained: Trained) -> None:
    broken = threading.Event()

    def engine(images: np.ndarray) -> np.ndarray:
        if broken.is_set():
            raise RuntimeError("out of memory")
        return model.engine(images)

    content = photographs(trained)[0].read_bytes()
    with client_of(replace(model, engine=engine)) as client:
        broken.set()
        assert client.post("/predict", content=content, headers=JPEG).status_code == 500
        assert client.get("/readyz").status_code == 503
        broken.clear()
        assert client.get("/readyz").status_code == 200


def test_every_size_that_keras_compiles_is_warmed_up(model: ServedModel) -> None:
    sizes: list[int] = []

    def engine(images: np.ndarray) -> np.ndarray:
        sizes.append(len(images))
        return model.engine(images)

    replace(model, engine=engine, engine_name="keras", draw=None).warm_up(6)
    assert sizes == [1, 2, 4, 6]


def test_the_overlays_of_a_keras_engine_have_a_network_of_their_own(trained: Trained, monkeypatch: Any) -> None:
    """Two threads would use one network."""
    made: list[Any] = []
    monkeypatch.setattr(
        "resnetlab.server.model.of_run", lambda *found, **more: made.append((found[0], more["explainer"]))
    )
    serving._run(Run(RunFolder.open(trained[0].path)), "keras", "float32", True, LogProgress())
    ((predictor, explainer),) = made
    assert predictor.network is not explainer.network


async def _serve(path: Path) -> None:
    serve(path, port=0)


def test_within_an_event_loop_it_says_so(trained: Trained) -> None:
    with pytest.raises(UsageError, match="An event loop runs here already"):
        asyncio.run(_serve(trained[0].path))


def test_what_cannot_be_served_is_said_before_it_listens(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        serve(tmp_path / "nowhere", port=0)
    with pytest.raises(UsageError, match="an export, which has its own engine"):
        serve(default_folder(trained[0], "onnx", "float32"), port=0, engine="keras")
    with pytest.raises(UsageError, match=r"Received host 'no\.such\.host\.invalid', port 0"):
        serve(trained[0].path, host="no.such.host.invalid", port=0)
    for name in ("example.org:443", "a*.example.org", "https://example.org"):
        with pytest.raises(UsageError, match="Received the host name"):
            serve(trained[0].path, port=0, allowed_hosts=[name])
    for value in (0, -1.5, float("nan"), float("inf")):
        with pytest.raises(UsageError, match=f"Received max_megabytes={value}, expected a number"):
            Limits(max_megabytes=value)
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ResnetlabError, match=r"Cannot listen on 127\.0\.0\.1, port \d+: Address already in use"):
            serve(trained[0].path, port=taken.getsockname()[1])
