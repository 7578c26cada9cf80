from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def make() -> ModuleType:
    """The generator of images, make_images.py beside this file (tests are no package to import it from)."""
    spec = importlib.util.spec_from_file_location("make_images", Path(__file__).with_name("make_images.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets."""
    if not os.environ.get("RESNETLAB_DATA"):
        pytest.skip("RESNETLAB_DATA is not set: no real data sets here")
    return Path(os.environ["RESNETLAB_DATA"])


@pytest.fixture
def nothing_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty working folder, with no data sets in any place that is searched."""
    monkeypatch.delenv("RESNETLAB_DATA", raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.chdir(tmp_path)
    return tmp_path
