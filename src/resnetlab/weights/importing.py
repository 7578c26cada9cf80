"""Import weights from a named source into a run folder (read, convert, check), or take them from the cache."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnetlab import environment
from resnetlab.errors import ResnetlabError
from resnetlab.run_folder import RunFolder

FORMAT = 1  # raised when an import of the same files would have another result: cached ones are not used then


def import_weights(
    source: str, folder: Path, key: str | None, options: Mapping[str, Any], *, backend: str | None, device: str
) -> RunFolder:
    """Read `source` (`readers.read`), and make a run of it (`convert.import_checkpoint`, whose `options` these are)."""
    from resnetlab.weights.readers import read

    RunFolder.require_empty(folder)
    environment.configure(backend=backend, device=device)  # keras.applications' download imports Keras
    checkpoint = read(source, key=key)  # and a .pth file PyTorch, which must be imported before TensorFlow
    environment.start(backend=backend, device=device)
    from resnetlab.weights.convert import import_checkpoint

    return import_checkpoint(checkpoint, folder, **options)


def import_to_cache(
    source: str, key: str | None, options: Mapping[str, Any], *, backend: str | None, device: str
) -> RunFolder:
    """The cached run of `source`; imported now if its files have changed or were never imported."""
    from resnetlab.weights.readers import is_on_hub, snapshot

    path = snapshot(source) if is_on_hub(source) else Path(source).expanduser()  # a new commit is another folder
    files = (sorted(path.iterdir()) if path.is_dir() else [path]) if path.exists() else []
    stats = [(file.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for file in files for stat in [file.stat()]]
    identity = f"{FORMAT} {path.resolve() if stats else source} {stats} {key} {sorted(options.items())}"
    name = f"{import_name(source)}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}"
    kept = environment.cache_folder() / "imported" / name
    if kept.is_dir():
        return RunFolder.open(kept)
    try:
        return import_weights(source, kept, key, options, backend=backend, device=device)
    except ResnetlabError:
        if kept.is_dir():  # another process has just made the same
            return RunFolder.open(kept)
        raise


def import_name(source: str) -> str:
    """A folder name for the weights imported from `source`."""
    path = Path(source).expanduser()
    name = path.stem if path.is_file() else path.resolve().name
    return re.sub(r"[^\w.-]+", "-", name)
