"""Where labelled images come from: a folder of class folders, Animals-10, CIFAR-10, scikit-learn's digits.

A source lists images with their labels and decodes nothing: files and members of zip files are decoded once,
by the audit; what comes as an array (digits, CIFAR-10's python batches) is kept as one.
"""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from resnetlab.errors import ResnetlabError, UsageError, first_informative_line, unknown

NAMES = ("animals10", "cifar10", "digits")

# Animals-10 comes with Italian folder names.
ANIMALS10 = {
    "farfalla": "butterfly",
    "gatto": "cat",
    "gallina": "chicken",
    "mucca": "cow",
    "cane": "dog",
    "elefante": "elephant",
    "cavallo": "horse",
    "pecora": "sheep",
    "ragno": "spider",
    "scoiattolo": "squirrel",
}
ANIMALS10_KAGGLE = "alessiocorrado99/animals10"

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
CIFAR10_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
CIFAR10_BATCHES = {f"data_batch_{i}": "train" for i in range(1, 6)} | {"test_batch": "test"}

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif"}
IMAGE_SUFFIXES |= {".ppm", ".pgm", ".pbm", ".heic", ".heif", ".hif"}
SUBSET_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
SEARCH_DEPTH = 4  # kagglehub unpacks to animals10/versions/2/raw-img


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image: a file, a member of a zip file, or a row of the source's array."""

    name: str  # its place inside the source, "dog/1.jpg"
    path: Path  # the file that holds its bytes; for a row of an array only a name
    label: int
    subset: str | None = None  # "train", "validation" or "test" where the source itself says so
    zipped: bool = False  # it is the member `name` of the zip file `path`


@dataclass(frozen=True, eq=False)
class Source:
    """Labelled images, not yet decoded unless `images` holds them."""

    name: str
    location: str
    class_names: tuple[str, ...]
    samples: tuple[Sample, ...]
    images: NDArray[np.uint8] | None = None  # (n, height, width, 3), a row for each sample
    num_ignored: int = 0  # files whose name is not an image's

    @property
    def in_memory(self) -> bool:
        """Whether `images` holds the pixels; otherwise `reader` gives each sample's encoded bytes."""
        return self.images is not None

    @contextmanager
    def reader(self) -> Iterator[Callable[[Sample], bytes]]:
        """A function from a sample to its encoded bytes, safe to call from many threads."""
        with ExitStack() as stack:
            zips = {
                path: stack.enter_context(zipfile.ZipFile(path))
                for path in {sample.path for sample in self.samples if sample.zipped}
            }

            def read(sample: Sample) -> bytes:
                return zips[sample.path].read(sample.name) if sample.zipped else sample.path.read_bytes()

            yield read


def resolve(spec: str, *, data_root: Path | None = None) -> Source:
    """The source that `spec` names: a folder, or "animals10", "cifar10", "digits".

    A name is looked for below `data_root` (by default $RESNETLAB_DATA), then below ./data, then downloaded.
    Raises UsageError where there is no such thing, ResnetlabError where what is there cannot be learned from.
    """
    path = Path(spec).expanduser()
    if path.is_dir():
        return _find(path, "animals10") or _find(path, "cifar10") or _from_folder(path)
    if path.exists():
        raise UsageError(
            f"{spec} is a file; expected a folder of class folders, or one of {', '.join(NAMES)}. "
            "To classify single images, use `resnetlab predict`."
        )
    if spec == "digits":
        return _digits()
    if spec not in NAMES:
        _no_such_folder(path)

    data_root = data_root or Path(os.environ.get("RESNETLAB_DATA") or "data")
    roots = [data_root, Path("data")]
    if spec == "cifar10":  # Keras may have downloaded it before
        roots.append(Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras") / "datasets")
    for root in roots:
        if source := _find(root, spec):
            return source
    return _download_animals10(roots) if spec == "animals10" else _download_cifar10(roots)


def _no_such_folder(path: Path) -> NoReturn:
    siblings = [str(folder) for folder in _subfolders(path.parent)]
    hint = f"Expected a folder of class folders, or one of {', '.join(NAMES)}."
    raise unknown("data set or folder", str(path), [*NAMES, *siblings], hint=hint)


def _find(root: Path, name: str) -> Source | None:
    """The data set `name` at `root` or below it, nearest first."""
    level = [root]
    for _ in range(SEARCH_DEPTH + 1):
        for folder in level:
            if source := _animals10_in(folder) if name == "animals10" else _cifar10_in(folder):
                return source
        level = [subfolder for folder in level for subfolder in _subfolders(folder)]
    return None


# ----------------------------------------------------------------------------------- folders of class folders


def _from_folder(root: Path, *, name: str = "", shown: dict[str, str] | None = None) -> Source:
    """Class folders directly in `root`, or in its train, val and test folders.

    `shown` maps a folder's name to the name of its class, where they differ.
    """
    shown = shown or {}
    parts = _split_folders(root) or {None: root}
    files = {
        (subset, shown.get(folder.name, folder.name)): _files(folder)
        for subset, part in parts.items()
        for folder in _subfolders(part)
    }
    images = {place: [path for path in paths if _is_image(path)] for place, paths in files.items()}
    class_names = tuple(sorted({class_name for _, class_name in images}))
    _check_classes(root, parts, images, class_names)

    samples = [
        Sample(path.relative_to(root).as_posix(), path, class_names.index(class_name), subset)
        for (subset, class_name), paths in sorted(images.items(), key=lambda item: (item[0][0] or "", item[0][1]))
        for path in paths
    ]
    # Files beside the class folders are ignored too, whatever their name.
    beside = sum(entry.is_file() for folder in {root, *parts.values()} for entry in folder.iterdir())
    num_ignored = beside + sum(map(len, files.values())) - len(samples)
    return Source(name or root.resolve().name, str(root), class_names, tuple(samples), num_ignored=num_ignored)


def _check_classes(
    root: Path,
    parts: dict[str | None, Path],
    images: dict[tuple[str | None, str], list[Path]],
    class_names: tuple[str, ...],
) -> None:
    """Raise ResnetlabError unless there are two classes, the same in each part, each with an image."""
    expected = "Expected a folder for each class, with its images in it"
    if not any(images.values()):
        loose = sum(_is_image(path) for path in root.iterdir() if path.is_file())
        found = f"{loose} images lie in {root} itself, in no class folder" if loose else f"No images in {root}"
        raise ResnetlabError(f"{found}. {expected} ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    if len(class_names) == 1:
        raise ResnetlabError(f"Only one class in {root}: {class_names[0]!r}. {expected}, and two classes or more.")
    for subset, part in parts.items():
        missing = [name for name in class_names if (subset, name) not in images]
        if missing:
            raise ResnetlabError(
                f"{part} has no folder for {_listed(missing)}, which other parts of {root} have. "
                "Expected the same class folders in each of train, val and test."
            )
        empty = [name for name in class_names if not images[subset, name]]
        if empty:
            raise ResnetlabError(
                f"No image in {part} for the class{'es' if len(empty) > 1 else ''} {_listed(empty)}. "
                "Expected at least one in each class: add images, or remove the folder."
            )


def _split_folders(root: Path) -> dict[str | None, Path]:
    """The train, validation and test folders of `root`; none where any other folder holds images too.

    For "train" may well be a class, beside "car" and "bicycle".
    """
    folders = _subfolders(root)
    named = [folder for folder in folders if folder.name.lower() in SUBSET_FOLDERS]
    others = [folder for folder in folders if folder not in named]
    if not named or any(_is_image(path) for folder in others for path in _files(folder)):
        return {}
    counts = Counter(SUBSET_FOLDERS[folder.name.lower()] for folder in named)
    if counts["train"] != 1 or max(counts.values()) > 1:
        raise ResnetlabError(
            f"{root} holds the folders {_listed([folder.name for folder in named])}. Expected one train "
            "folder, at most one of val, valid and validation, and at most one test, each with class folders."
        )
    return {SUBSET_FOLDERS[folder.name.lower()]: folder for folder in named}


def _subfolders(folder: Path) -> list[Path]:
    """Sorted; without hidden ones and archivers' leavings such as __MACOSX."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__")))
            names = [name for name in names if not _holds_runs(folder / name)]
    except OSError:  # a file, absent, or not ours to read
        return []
    return [folder / name for name in names]


def _holds_runs(folder: Path) -> bool:
    """Whether a folder is `runs/` or a run folder, left there by training inside the data's folder: not a class."""
    return (folder / "run.json").is_file() or any(folder.glob("*/run.json"))


def _files(folder: Path) -> list[Path]:
    """Every file below `folder`, sorted; a folder reached twice, as through a loop of links, counts once."""

    def fail(error: OSError) -> NoReturn:
        raise ResnetlabError(f"Cannot read the folder {error.filename}: {error.strerror}. Check its permissions.")

    found: list[Path] = []
    seen: set[str] = set()
    for parent, subfolders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(parent)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(parent, name) for name in sorted(names)]
    return found


def _is_image(path: Path | PurePosixPath) -> bool:
    """By name only; what is inside is for the audit to find out."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _listed(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


# ------------------------------------------------------------------------------------------------- Animals-10


def _animals10_in(folder: Path) -> Source | None:
    """Recognised by its Italian folder names, whole or divided into train, val and test."""
    for part in (folder, folder / "train"):
        if {subfolder.name for subfolder in _subfolders(part)} == set(ANIMALS10):
            return _from_folder(folder, name="animals10", shown=ANIMALS10)
    return None


def _download_animals10(searched: list[Path]) -> Source:
    try:
        import kagglehub

        root = Path(kagglehub.dataset_download(ANIMALS10_KAGGLE))
    except Exception as error:  # no network, no account, no space: kagglehub raises many kinds
        raise ResnetlabError(
            f"Animals-10 is not below {_places(searched)}, and could not be downloaded: {_brief(error)}. "
            f"Get it from https://www.kaggle.com/datasets/{ANIMALS10_KAGGLE} and unpack it into ./data, or "
            f"anywhere below $RESNETLAB_DATA: expected are its ten folders {', '.join(sorted(ANIMALS10))}."
        ) from error
    source = _find(root, "animals10")
    if source is None:
        raise ResnetlabError(
            f"The download of Animals-10 in {root} is not complete: expected the ten folders "
            f"{', '.join(sorted(ANIMALS10))}. Remove {root} and try again."
        )
    return source


def _places(roots: list[Path]) -> str:
    return " or ".join(dict.fromkeys(str(root.absolute()) for root in roots))


def _brief(error: Exception) -> str:
    """The first line of an error that may be a page long."""
    return first_informative_line(error, limit=300).rstrip(".")


# --------------------------------------------------------------------------------------------------- CIFAR-10


def _cifar10_in(folder: Path) -> Source | None:
    """As class folders, the official python batches, the archive of these, or zip files of class folders."""
    for part in (folder, folder / "train"):
        if {subfolder.name for subfolder in _subfolders(part)} == set(CIFAR10):
            return _from_folder(folder, name="cifar10")
    if all((folder / batch).is_file() for batch in CIFAR10_BATCHES):
        return _cifar10_batches(folder, {name: (folder / name).read_bytes() for name in CIFAR10_BATCHES})
    for archive in sorted(folder.glob("cifar-10*.tar.gz")):
        return _cifar10_archive(archive)
    return _cifar10_zips(folder)


def _cifar10_zips(folder: Path) -> Source | None:
    """Zip files that together hold the ten class folders; None where there are no such."""
    samples = []
    for path in sorted(folder.glob("*.zip")):
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
        except (OSError, zipfile.BadZipFile) as error:
            raise ResnetlabError(f"Cannot read {path}: {_brief(error)}. Expected a zip file; get it again.") from error
        for name in members:
            member = PurePosixPath(name)
            if member.parent.name in CIFAR10 and _is_image(member):
                subset = SUBSET_FOLDERS.get(member.parent.parent.name)
                samples.append(Sample(name, path, CIFAR10.index(member.parent.name), subset, zipped=True))
    if len({sample.label for sample in samples}) < len(CIFAR10):
        return None
    return Source("cifar10", str(folder), CIFAR10, tuple(samples))


def _cifar10_archive(path: Path) -> Source:
    try:
        with tarfile.open(path) as archive:
            files = {Path(member.name).name: archive.extractfile(member) for member in archive if member.isfile()}
            batches = {name: file.read() for name in CIFAR10_BATCHES if (file := files.get(name))}
    except (OSError, EOFError, tarfile.TarError) as error:
        raise ResnetlabError(
            f"Cannot read {path}: {_brief(error)}. Expected {CIFAR10_URL}; remove the file and get it again."
        ) from error
    if missing := [name for name in CIFAR10_BATCHES if name not in batches]:
        raise ResnetlabError(f"{path} lacks {_listed(missing)}. Expected {CIFAR10_URL}; get it again.")
    return _cifar10_batches(path, batches)


def _cifar10_batches(location: Path, batches: dict[str, bytes]) -> Source:
    """The official batches: a pickled dict of "data", rows of 3072 bytes channel by channel, and "labels"."""
    images, samples = [], []
    for batch, subset in CIFAR10_BATCHES.items():
        content = _unpickle(batches[batch], f"{location}: {batch}")
        content = content if isinstance(content, dict) else {}
        rows, labels = content.get(b"data"), list(content.get(b"labels", ()))
        if (
            not isinstance(rows, np.ndarray)
            or rows.dtype != np.uint8
            or rows.shape != (len(labels), 3072)
            or not set(labels) <= set(range(10))
        ):
            raise ResnetlabError(
                f"{location}: {batch} is not a CIFAR-10 batch. Expected uint8 data of shape (n, 3072) and n "
                f"labels from 0 to 9, as in {CIFAR10_URL}."
            )
        images.append(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))  # (n, 32, 32, 3)
        names = [f"{batch}/{row:05}" for row in range(len(labels))]
        samples += [Sample(name, Path(name), label, subset) for name, label in zip(names, labels, strict=True)]
    return Source("cifar10", str(location), CIFAR10, tuple(samples), np.concatenate(images))


class _ArrayUnpickler(pickle.Unpickler):
    """Loads NumPy arrays and Python's own plain types; a pickle that names anything else is refused.

    For a pickle is a program, and this one comes from a download.
    """

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # Named after the module of NumPy 1 or 2 that wrote it.
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        # How protocol 2 writes Python 3's bytes.
        ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return self.ALLOWED[module, name]


def _unpickle(data: bytes, place: str) -> Any:
    try:
        return _ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ResnetlabError(
            f"{place} was not loaded: {_brief(error)}. Expected a pickle of arrays and plain values only; "
            f"get it again from {CIFAR10_URL}."
        ) from error


def _download_cifar10(searched: list[Path]) -> Source:
    try:
        from keras.utils import get_file  # shows progress, checks the hash, keeps it in ~/.keras/datasets

        path = Path(get_file("cifar-10-python.tar.gz", CIFAR10_URL, file_hash=CIFAR10_SHA256))
    except Exception as error:
        raise ResnetlabError(
            f"CIFAR-10 is not below {_places(searched)}, and could not be downloaded: {_brief(error)}. "
            f"Get {CIFAR10_URL} and put it, as it is, into ./data or $RESNETLAB_DATA."
        ) from error
    return _cifar10_archive(path)


# ----------------------------------------------------------------------------------------------------- digits


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits of 8x8 pixels, grey levels 0-16 stretched to 0-255."""
    from sklearn.datasets import load_digits  # takes a second to import

    digits = load_digits()
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8)
    images = np.repeat(grey[..., None], 3, axis=-1)  # (1797, 8, 8, 3)
    names = [f"{label}/{row:04}" for row, label in enumerate(digits.target)]
    samples = [Sample(name, Path(name), int(label)) for name, label in zip(names, digits.target, strict=True)]
    return Source("digits", "scikit-learn", tuple("0123456789"), tuple(samples), images)
