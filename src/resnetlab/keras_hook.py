"""Registers this package's layers with Keras when Keras is imported, so that saved models load without more imports."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

BACKENDS = ("tensorflow", "jax", "torch")


def install() -> None:
    """Register the layers now if Keras is there, else as soon as it has been imported."""
    if "keras" in sys.modules and hasattr(sys.modules["keras"], "saving"):
        register()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def register() -> None:
    """Register the layers by importing them. Does nothing if the active Keras backend is not supported."""
    if sys.modules["keras"].backend.backend() in BACKENDS:
        importlib.import_module("resnetlab.models.layers")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds Keras by the other finders, and calls `register` once it has been imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "keras":
            return None
        # This finder stays installed: find_spec is also called without an import, by importlib.util.find_spec.
        for finder in sys.meta_path:
            spec = None if finder is self or not hasattr(finder, "find_spec") else finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader)
                return spec
        return None


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self.loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        register()
