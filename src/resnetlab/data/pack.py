"""A data set packed: decoded once at working resolution into one memory-mapped file of bytes, and reused.

A pack is a folder with `images.npy` and `pack.json`. Its name contains the key: a hash of the settings and of the
names, sizes and modification times of the files, so that reuse opens no image. An existing pack is always complete (see
`build_pack.py`); if two processes build the same pack, the second one uses the pack of the first.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import features

from resnetlab.atomic import locked
from resnetlab.data import shards
from resnetlab.data.audit import require_few_losses, source_fields
from resnetlab.data.build_pack import DESCRIPTION, IMAGES, build
from resnetlab.data.preprocess import MAX_PIXELS, Interpolation
from resnetlab.data.shards import Images, Shards
from resnetlab.data.sources import Source
from resnetlab.data.split import check_fractions, split
from resnetlab.environment import cache_folder
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.progress import CountCallback
from resnetlab.recipes import Recipe
from resnetlab.untrusted import parse_json

FORMAT = 3  # increased whenever the same files would give different bytes


@dataclass(frozen=True, eq=False)
class Pack:
    """n images at working resolution with their labels and split."""

    images: Images  # (n, size, size, 3), memory-mapped, read-only
    labels: NDArray[np.int64]  # (n,)
    subset: NDArray[np.str_]  # (n,) "train", "validation", "test" or "unused"
    hashes: tuple[str, ...]
    names: tuple[str, ...]  # of the files, inside the source
    class_names: tuple[str, ...]
    source_name: str
    key: str
    audit: dict[str, Any]  # Audit.to_json()
    whole: Images | None = None  # the whole images, squeezed to squares, instead of their centre squares
    aspect: NDArray[np.float32] | None = None  # (n,) width / height of the images that were squeezed

    def indices(self, subset: str) -> NDArray[np.int64]:
        """Rows of a subset, ascending."""
        return np.flatnonzero(self.subset == subset)

    def class_counts(self, subset: str) -> NDArray[np.int64]:
        """Images of each class in a subset: (num_classes,)."""
        return np.bincount(self.labels[self.indices(subset)], minlength=len(self.class_names))


def pack(
    source: Source,
    *,
    size: int,
    cache_dir: Path,
    validation: float,
    test: float,
    seed: int = 0,
    inherited: Mapping[str, str] | None = None,
    interpolation: Interpolation = "bilinear",
    whole: bool = False,
    allow_losses: bool = False,
    workers: int | None = None,
    progress: CountCallback | None = None,
    waiting: Callable[[], None] | None = None,
) -> Pack:
    """Audit, decode and resize `source` to size x size pixels, or reuse the pack of it in `cache_dir`.

    With `whole`, each image is stored twice: its centre square, which evaluation and prediction see, and all of it.
    The split (see `split`) is not part of what is stored. `progress(done, total)` is called only where images
    are decoded, and `waiting` before waiting for another process that packs the same images. Raises UsageError for
    values out of range, ResnetlabError if a class is left without a usable or a training image, loses most of its
    images (unless `allow_losses`), or if the pack cannot be written.
    """
    if size < 1:
        raise UsageError(f"image size {size}: expected at least 1 pixel.")
    check_fractions(validation=validation, test=test)

    images: Images
    meta: Mapping[str, Any]
    if source.packed is not None:
        source.packed.require(size, interpolation, whole=whole)
        images, meta = source.packed.images, source.packed.meta
    else:
        images, meta = _stored(
            source, size, interpolation, whole, cache_dir, workers, progress, waiting, allow_losses=allow_losses
        )
    subsets = split(
        meta["hashes"],
        meta["labels"],
        meta["subsets"],
        validation=validation,
        test=test,
        seed=seed,
        inherited=inherited,
    )
    packed = Pack(
        images=_column(images, 0) if whole else images,
        whole=_column(images, 1) if whole else None,
        aspect=np.array(meta["aspect"], np.float32) if whole else None,
        labels=np.array(meta["labels"], np.int64),
        subset=subsets,
        hashes=tuple(meta["hashes"]),
        names=tuple(meta["names"]),
        class_names=source.class_names,
        source_name=source.name,
        key=meta["key"],
        # What is ignored is not in the key, and the source may have moved since.
        audit=meta["audit"] | {"location": source.location} | _source_fields(source, meta),
    )
    _require_training_images(packed, source, inherited)
    return packed


def _source_fields(source: Source, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the audit that depend on the source; of packed images, those of the data that was packed."""
    return {} if source.packed is not None else source_fields(source, meta["audit"]["classes"])


def _column(images: Images, number: int) -> Images:
    return images.column(number) if isinstance(images, Shards) else images[:, number]


def write_shards(
    source: Source,
    recipe: Recipe,
    target: str,
    *,
    rows: int,
    allow_losses: bool = False,
    decoded: CountCallback | None = None,
    written: CountCallback | None = None,
) -> tuple[int, int]:
    """Pack `source` as a recipe needs it, and write the images to shards of so many rows.

    They are decoded into the cache first, by several processes. Returns how many shards, and how many images.

    Raises:
        ResnetlabError: as in `pack`; they cannot be written.
    """
    if source.packed is not None:
        raise UsageError(f"{source.location} is packed already.")
    shards.require_free(target)
    interpolation, whole, cache = recipe.interpolation, recipe.whole_images, cache_folder()
    images, meta = _stored(
        source, recipe.pack_size, interpolation, whole, cache, None, decoded, None, allow_losses=allow_losses
    )
    described = {
        "source": shards.portable(source.name),
        "class_names": source.class_names,
        "interpolation": interpolation,
        "whole": whole,
        **meta,
        "audit": meta["audit"] | source_fields(source, meta["audit"]["classes"]),
    }
    return shards.write(images, described, target, rows=rows, progress=written), len(images)


def _stored(
    source: Source,
    size: int,
    interpolation: Interpolation,
    whole: bool,
    cache_dir: Path,
    workers: int | None,
    progress: CountCallback | None,
    waiting: Callable[[], None] | None,
    *,
    allow_losses: bool,
) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """The images and what is kept beside them, from the cache or made now; by one process at a time."""
    if not allow_losses:  # what is known before anything is decoded
        require_few_losses(source, Counter(source.class_names[sample.label] for sample in source.samples))
    key = _key(source, size, interpolation, whole)
    shape = (2, size, size, 3) if whole else (size, size, 3)  # of one image
    folder = cache_dir / f"{source.name}-{shape[-2]}-{key[:16]}"
    stored = _load(folder, key)
    if stored is None:
        try:
            locks = cache_dir / ".locks"
            locks.mkdir(parents=True, exist_ok=True)
            with locked(locks / key[:16], waiting=waiting or (lambda: None)):
                stored = _load(folder, key)
                if stored is None:
                    build(folder, source, shape, interpolation, key, workers=workers, progress=progress)
                    stored = _load(folder, key)
        except OSError as error:
            megabytes = len(source.samples) * math.prod(shape) / 1e6
            raise ResnetlabError(
                f"Cannot write the packed images to {cache_dir}: {error.strerror or error}. They take "
                f"{megabytes:,.0f} MB: make room, or set $RESNETLAB_CACHE to a folder that can be written to."
            ) from error
    if stored is None:
        raise ResnetlabError(f"The pack {folder} was removed while it was being made. Run the command again.")
    if not allow_losses:
        require_few_losses(source, stored[1]["audit"]["classes"])
    return stored


def _require_training_images(packed: Pack, source: Source, inherited: Mapping[str, str] | None) -> None:
    untrained = [source.class_names[label] for label in np.flatnonzero(packed.class_counts("train") == 0)]
    if untrained:
        raise ResnetlabError(
            f"No training image of {', '.join(untrained[:5])} in {source.location}. Expected at least one of "
            "each class: see `resnetlab audit` for what was set aside."
            + (" The run that the weights come from holds the others out: add images." if inherited else "")
        )


def prepare_pack(
    source: Source,
    recipe: Recipe,
    *,
    inherited: Mapping[str, str] | None = None,
    allow_losses: bool = False,
    progress: CountCallback | None = None,
    waiting: Callable[[], None] | None = None,
) -> Pack:
    """Pack and split `source` in the cache, by a recipe and the `inherited` subsets (see `split`)."""
    return pack(
        source,
        size=recipe.pack_size,
        interpolation=recipe.interpolation,
        whole=recipe.whole_images,
        cache_dir=cache_folder(),
        validation=recipe.validation,
        test=recipe.test,
        seed=recipe.seed,
        inherited=inherited,
        allow_losses=allow_losses,
        progress=progress,
        waiting=waiting,
    )


def spread(indices: np.ndarray, count: int) -> np.ndarray:
    """At most `count` of them, evenly spread: files lie class by class."""
    return indices[np.linspace(0, len(indices) - 1, min(count, len(indices))).astype(int)]


def _key(source: Source, size: int, interpolation: Interpolation, whole: bool) -> str:
    """A hash of the settings and of the files' metadata, or of the pixels if the source is an array."""
    digest = hashlib.sha256()
    limit = os.environ.get("RESNETLAB_MAX_PIXELS") or str(MAX_PIXELS)
    optional = [find_spec("pillow_heif") is not None, features.check("avif")]  # otherwise HEIC and AVIF are set aside
    digest.update(json.dumps([FORMAT, limit, optional, size, source.name, source.class_names]).encode())
    if interpolation != "bilinear":  # packs of before there was a choice keep their key
        digest.update(interpolation.encode())
    if whole:
        digest.update(b"whole")
    if source.images is not None:
        digest.update(np.ascontiguousarray(source.images).data)
        digest.update(str(source.images.shape).encode())
    stats: dict[Path, tuple[int, int, int]] = {}
    for sample in source.samples:
        if source.images is None and sample.path not in stats:
            stats[sample.path] = _stat(sample.path)
        row = [sample.name, sample.label, sample.subset, stats.get(sample.path)]
        digest.update(json.dumps(row).encode())
    return digest.hexdigest()


def _stat(path: Path) -> tuple[int, int, int]:
    """Size and times: that of the last change too, as some programs restore that of the last modification."""
    try:
        stat = path.stat()
    except OSError:  # a dangling link; the audit will report it
        return 0, 0, 0
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def _load(folder: Path, key: str) -> tuple[NDArray[np.uint8], dict[str, Any]] | None:
    """The images and the description of a whole pack with that key; None if there is none."""
    try:
        meta = parse_json((folder / DESCRIPTION).read_text(encoding="utf-8"))
        images = np.load(folder / IMAGES, mmap_mode="r", allow_pickle=False)  # fails if it is too short
    except (OSError, ValueError):
        return None
    if meta.get("key") != key or images.dtype != np.uint8 or list(images.shape) != meta["shape"]:
        return None
    return images, meta
