"""Weights to share: in our names or those of other libraries, with a model card, on the hub, and back."""

import base64
import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import resnetlab as rl
from resnetlab.errors import UsageError
from resnetlab.inference.sharing import RESAMPLING, configuration
from resnetlab.models.from_recipe import build_network
from resnetlab.models.variants import VARIANTS, architecture
from resnetlab.recipes import BASE
from resnetlab.run_folder import RunFolder, RunInfo
from resnetlab.weights.libraries import LIBRARIES, name_in, to_arrays
from resnetlab.weights.mapping import recognise
from tests.models.randomised import randomised
from tests.models.reference import as_torch, empty_weights
from tests.workers import ENVIRONMENT, ROOT

NAMES = ("cat", "dog", 'one, "two"')


def make_run(folder: Path, model: str = "resnet-tiny", **settings: Any) -> rl.Run:
    """A run with random weights, as if imported."""
    recipe = BASE.changed(model=model, image_size=32, **settings)
    info = RunInfo(model=model, class_names=NAMES, source="random", status="imported")
    run = RunFolder.create(folder, recipe=recipe, info=info)
    network = build_network(recipe, len(NAMES))
    rng = np.random.default_rng(0)
    for variable in network.weights:
        if len(variable.shape) == 1:  # batch norms and biases, which begin at 0 or 1
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    run.write_split(())
    run.save_weights("best.weights.h5", network)
    return rl.load(run.path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> rl.Run:
    return make_run(tmp_path_factory.mktemp("runs") / "tiny", crop="pad")


def weights(run: rl.Run) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(variable) for variable in run.model.weights]


def test_our_names_come_back_to_the_bit(tiny: rl.Run, tmp_path: Path) -> None:
    made = tiny.export("safetensors", license="apache-2.0")
    assert made.path == tiny.path / "export" / "safetensors-resnetlab"
    assert made.verification == {"read_back": "bit for bit", "library": None, "why": "these are our own names"}
    again = rl.from_pretrained(made.path, run=tmp_path / "again")
    for mine, theirs in zip(weights(tiny), weights(again), strict=True):
        np.testing.assert_array_equal(theirs, mine)
    assert again.class_names == NAMES
    assert again.folder.read_json("import.json")["licence"] == "apache-2.0"
    assert tiny.export("safetensors", output=tmp_path / "other").path == tmp_path / "other"


def test_the_model_card_states_what_the_run_records(tiny: rl.Run) -> None:
    tiny.folder.write_json(
        "evaluation.json",
        {
            "subset": "test",
            "n": 336,
            "top1": 0.9,
            "top1_interval": [0.85, 0.93],
            "loss": 0.4,
            "calibration_error": 0.02,
        },
    )
    card = (tiny.export("safetensors", license="mit").path / "README.md").read_text("utf-8")
    head, _, body = card.removeprefix("---\n").partition("---\n")
    stated = {key: value for key, _, value in (line.partition(": ") for line in head.splitlines())}
    assert stated["license"] == "mit"
    assert json.loads(stated["pipeline_tag"]) == "image-classification"
    (entry,) = json.loads(stated["model-index"])
    assert entry["results"][0]["metrics"] == [{"type": "accuracy", "value": 0.9}]
    assert "Top-1 accuracy 90.0% (95 % interval 85.0% to 93.0%) on 336 test images" in body
    assert "77,587 parameters" in body
    assert "Imported from random; what it was trained on is not recorded." in body
    (tiny.path / "evaluation.json").unlink()
    card = (tiny.export("safetensors").path / "README.md").read_text("utf-8")
    assert "Not evaluated." in card
    assert "Not stated." in card
    assert "license" not in card.partition("---\n# ")[0].split("\n")[1]


@pytest.mark.parametrize("model", ["resnet18", "resnet50", "resnet50d", "se-resnet50", "resnext50-32x4d"])
def test_the_arrays_of_others_are_what_their_import_reads(model: str) -> None:
    arch = VARIANTS[model]
    mine = randomised(empty_weights(arch, 3))
    theirs = as_torch(mine, arch)
    made = to_arrays(mine, arch, "timm", 3)
    counters = {name for name in made if name.endswith("num_batches_tracked")}
    assert made.keys() - counters == theirs.keys() - counters
    for name, array in theirs.items():
        if name not in counters:
            np.testing.assert_array_equal(made[name].reshape(array.shape), array)
    found, naming, classes = recognise(made, model=model)
    assert (found.name, naming.family, classes) == (model, "torchvision", 3)


@pytest.mark.parametrize(
    ("model", "library", "expected"),
    [
        ("resnet50", "torchvision", "resnet50"),
        ("resnext50-32x4d", "timm", "resnext50_32x4d"),
        ("se-resnet50", "timm", "seresnet50"),
        ("resnet34-v1", "transformers", "ResNetForImageClassification"),
        ("resnet50-v1", "transformers", "ResNetForImageClassification"),
    ],
)
def test_what_a_library_calls_it(model: str, library: str, expected: str) -> None:
    assert name_in(library, architecture(model)) == expected


@pytest.mark.parametrize(
    ("model", "library", "fitting"),
    [
        ("resnet50-v1", "torchvision", "resnetlab, transformers"),  # its stride is on the 1x1
        ("resnet50d", "torchvision", "resnetlab, timm"),
        ("se-resnet50", "transformers", "resnetlab, timm"),
        ("resnext50-32x4d", "transformers", "resnetlab, torchvision, timm"),
        ("resnet20", "timm", "resnetlab"),
        ("keras-resnet50", "timm", "resnetlab"),
        ("preresnet18", "torchvision", "resnetlab"),
    ],
)
def test_what_a_library_does_not_have(model: str, library: str, fitting: str) -> None:
    with pytest.raises(UsageError, match=rf"{library} has no {model}.* fit: {fitting}\."):
        name_in(library, architecture(model))


def test_every_network_has_at_least_our_names() -> None:
    for arch in VARIANTS.values():
        assert name_in("resnetlab", arch) == arch.name
    with pytest.raises(UsageError, match=r"Unknown library 'tim'.*timm"):
        name_in("tim", VARIANTS["resnet18"])
    assert set(LIBRARIES) == {"resnetlab", "torchvision", "timm", "transformers"}


def test_transformers_processor_crops_only_small_images() -> None:
    arch, recipe = VARIANTS["resnet18"], BASE.changed(crop="resized", image_size=352)
    made = configuration("transformers", "x", arch, recipe, ("cat", "dog"), None)
    assert made["preprocessor_config.json"]["size"] == {"shortest_edge": 352}
    with pytest.raises(UsageError, match="resizes whole images to a square from 384"):
        configuration("transformers", "x", arch, recipe.changed(image_size=384), ("cat", "dog"), None)


def test_interpolations_are_pillows() -> None:
    from PIL import Image

    assert {name: Image.Resampling[name.upper()].value for name in RESAMPLING} == RESAMPLING


@pytest.mark.long
@pytest.mark.benchmark
@pytest.mark.skipif(find_spec("transformers") is None, reason="transformers is not installed: make test EXTRAS=torch")
def test_transformers_loads_it_and_computes_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "resnet50-v1", crop="resized", crop_pct=0.8)
    made = run.export("safetensors", names="transformers")
    assert made.verification["library"].startswith("transformers ")
    assert made.verification["largest_difference"] < 1e-4
    again = rl.from_pretrained(made.path, run=tmp_path / "again")
    assert again.info.model == "resnet50-v1"
    assert (again.recipe.test_size, again.recipe.pack_size) == (32, 40)


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as an upload and a download need: one repository, files in memory."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    created: list[dict[str, Any]] = []  # noqa: RUF012
    tokens: set[str | None] = set()  # noqa: RUF012

    def answer(self, value: Any, status: int = 200) -> None:
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.tokens.add(self.headers["Authorization"])
        address = f"http://{self.headers['Host']}/me/net"
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            self.answer({"url": address, "name": "me/net", "id": "me/net"})
        elif self.path.endswith("/preupload/main"):
            files = [{"path": each["path"], "uploadMode": "regular"} for each in json.loads(body)["files"]]
            self.answer({"files": [each | {"shouldIgnore": False, "oid": None} for each in files]})
        elif self.path.endswith("/commit/main"):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.answer({"commitUrl": address, "commitOid": "0" * 40, "success": True})
        else:
            self.answer({}, 200)

    def do_GET(self) -> None:
        if "/tree/" in self.path:
            sizes = {name: len(content) for name, content in self.files.items()}
            self.answer([{"type": "file", "path": name, "size": size, "oid": "0"} for name, size in sizes.items()])
        elif self.path.startswith("/api/models/me/net"):
            siblings = [{"rfilename": name, "size": len(content)} for name, content in self.files.items()]
            self.answer({"id": "me/net", "sha": "0" * 40, "siblings": siblings, "private": True})
        elif (name := self.path.rpartition("/")[2]) in self.files:
            self.answer(self.files[name])
        else:
            self.answer({"error": "not there"}, 404)

    do_HEAD = do_GET

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def command(folder: Path, hub: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = f"import sys; sys.argv[1:] = {list(arguments)!r}; from resnetlab.cli import main; main()"
    told = {"HF_ENDPOINT": hub, "HF_HOME": str(folder / "hub"), "HF_TOKEN": "hf_secret", "RESNETLAB_CACHE": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT | told, cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.long
def test_to_the_hub_and_back(tiny: rl.Run, tmp_path: Path, hub: str) -> None:
    done = command(
        tmp_path,
        hub,
        "export",
        str(tiny.path),
        "--format",
        "safetensors",
        "--push-to-hub",
        "me/net",
        "--license",
        "mit",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub}/me/net"
    asked = Hub.created[0]  # huggingface_hub 1 says private, 2 visibility
    assert asked.get("visibility", "private" if asked.get("private") else "public") == "private"
    assert Hub.tokens == {"Bearer hf_secret"}
    assert set(Hub.files) == {"config.json", "model.safetensors", "README.md"}
    assert b"license: mit" in Hub.files["README.md"]
    done = command(tmp_path, hub, "import", "me/net", "--run", str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr
    for mine, theirs in zip(weights(tiny), weights(rl.load(tmp_path / "again")), strict=True):
        np.testing.assert_array_equal(theirs, mine)
    done = command(
        tmp_path, "http://127.0.0.1:9", "export", str(tiny.path), "--format", "safetensors", "--push-to-hub", "me/net"
    )
    assert done.returncode == 1
    assert "me/net cannot be uploaded" in done.stderr


def test_options_of_safetensors_alone(tiny: rl.Run, tmp_path: Path) -> None:
    done = command(tmp_path, "", "export", str(tiny.path), "--names", "timm")
    assert done.returncode == 2
    assert "are for the format safetensors" in done.stderr
    with pytest.raises(UsageError, match="timm has no resnet-tiny"):
        tiny.export("safetensors", names="timm")


def test_a_margin_around_the_crop_comes_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", crop="resized", crop_pct=0.8)
    again = rl.from_pretrained(run.export("safetensors").path, run=tmp_path / "again")
    assert (again.recipe.test_size, again.recipe.pack_size) == (32, 40)
