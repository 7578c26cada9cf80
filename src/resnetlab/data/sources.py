"""Where labelled images come from: a folder of class folders, Animals-10, CIFAR-10, scikit-learn's digits.

A source lists images with their labels and decodes nothing: files and members of zip files are decoded once,
by the audit; what comes as an array (digits, CIFAR-10's python batches) is kept as one.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import tarfile
import unicodedata
import urllib.request
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NoReturn

import numpy as np
from numpy.typing import NDArray

from resnetlab.atomic import atomic_file
from resnetlab.data.layout import EXPECTED, Layout, detect_layout, listed, name_warnings
from resnetlab.data.preprocess import ImageProblem, content_of, room_for
from resnetlab.data.shards import Packed, is_sharded, read
from resnetlab.data.split_words import parse
from resnetlab.data.walk import (
    IMAGE_SUFFIXES,
    Folder,
    ending,
    is_image,
    is_skipped,
    listed_endings,
    scan,
    subfolders,
)
from resnetlab.errors import ResnetlabError, UsageError, first_informative_line, unknown_name
from resnetlab.untrusted import read_member

NAMES = ("animals10", "cifar10", "digits")
IN_MEMORY = ("cifar10", "digits")  # may come as one array, whose images are known by their pixels, not by their files

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
BATCH_BYTES = 64 << 20  # at most: a batch has 31 million
CIFAR10_BATCHES = {f"data_batch_{i}": "train" for i in range(1, 6)} | {"test_batch": "test"}

SEARCH_DEPTH = 4  # kagglehub unpacks to animals10/versions/2/raw-img


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled image: a file, a member of a zip file, or a row of the source's array."""

    name: str  # its path inside the source, such as "dog/1.jpg"
    path: Path  # the file that holds its bytes; for a row of an array only a name
    label: int
    subset: str | None = None  # "train", "validation" or "test" where the source itself states it
    zipped: bool = False  # it is the member `name` of the zip file `path`


Reader = Callable[[Sample], AbstractContextManager[bytes]]
Report = Callable[[str, int, int], None]  # as `Progress.count`


@dataclass(frozen=True, eq=False)
class Source:
    """Labelled images, not yet decoded unless `images` holds them."""

    name: str
    location: str
    class_names: tuple[str, ...]
    samples: tuple[Sample, ...]
    images: NDArray[np.uint8] | None = None  # (n, height, width, 3), a row for each sample
    ignored: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # files that are no images by their ending,
    # or lie in no class folder: by class ("" for the latter), then by ending
    ignored_files: tuple[str, ...] = ()  # their paths inside the source
    notes: tuple[str, ...] = ()  # how the folders were understood, and what was left out
    packed: Packed | None = None  # of shards: they were decoded before

    @property
    def ignored_endings(self) -> Counter[str]:
        """How many files are ignored, by ending."""
        return sum(map(Counter, self.ignored.values()), Counter())

    @property
    def num_files(self) -> int:
        """Samples that are files of their own, neither members of a zip file nor rows of an array."""
        return 0 if self.in_memory else sum(not sample.zipped for sample in self.samples)

    @property
    def in_memory(self) -> bool:
        """Whether `images` holds the pixels; otherwise `reader` gives each sample's encoded bytes."""
        return self.images is not None

    @contextmanager
    def reader(self) -> Iterator[Reader]:
        """A function from a sample to a context with its encoded bytes, or ImageProblem; for use in many threads."""
        with ExitStack() as stack:
            zips = {
                path: stack.enter_context(zipfile.ZipFile(path))
                for path in {sample.path for sample in self.samples if sample.zipped}
            }

            def read(sample: Sample) -> AbstractContextManager[bytes]:
                return _member(zips[sample.path], sample.name) if sample.zipped else content_of(sample.path)

            yield read


@contextmanager
def _member(archive: zipfile.ZipFile, name: str) -> Iterator[bytes]:
    """The content of an image in a zip file, as `content_of` a file."""
    size = archive.getinfo(name).file_size
    with room_for(size):
        try:
            content = read_member(archive, name, max_bytes=size)
        except Exception as error:  # a damaged or encrypted one: zipfile and zlib raise many kinds
            raise ImageProblem(f"unreadable ({error})") from error
        yield content


def resolve(
    spec: str,
    *,
    data_root: Path | None = None,
    known: bool = False,
    download: bool = True,
    progress: Report | None = None,
) -> Source:
    """The source that `spec` names: a folder, shards in a folder or at a URL, or "animals10", "cifar10", "digits".

    A folder of such a name comes first, unless `known` is true, as for the recorded data of a run. A name is looked
    for below `data_root` (by default $RESNETLAB_DATA), then below ./data, then downloaded, if `download` is true.
    `progress` is called with a task, and how many of its parts are done, of all.
    Raises UsageError if it does not exist, ResnetlabError if it cannot be used for training.
    """
    if is_sharded(spec):
        return _from_shards(spec, progress)
    path = Path(spec).expanduser()
    if path.is_dir() and not (known and spec in NAMES):
        tree = scan(path)
        for name in ("animals10", "cifar10"):
            source = _find(path, name)
            if source and tree.num_images <= source.num_files:  # the folder contains nothing else
                return source
        return _from_folder(tree)
    if path.is_file():
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
    if not download:
        raise ResnetlabError(f"{spec} is not on this machine.")
    return _download_animals10(roots) if spec == "animals10" else _download_cifar10(roots, progress)


def _no_such_folder(path: Path) -> NoReturn:
    siblings = [str(folder) for folder in subfolders(path.parent)]
    hint = f"Expected a folder of class folders, or one of {', '.join(NAMES)}."
    raise unknown_name("data set or folder", str(path), [*NAMES, *siblings], hint=hint)


def _from_shards(spec: str, progress: Report | None) -> Source:
    described, packed = read(spec, progress=partial(progress, "checking shards") if progress else None)
    columns = (described[key] for key in ("names", "labels", "subsets"))
    return Source(
        name=described["source"],
        location=spec,
        class_names=tuple(described["class_names"]),
        samples=tuple(Sample(name, Path(name), label, subset) for name, label, subset in zip(*columns, strict=True)),
        packed=packed,
    )


def _find(root: Path, name: str) -> Source | None:
    """The data set `name` at `root` or below it, nearest first."""
    level = [root]
    for _ in range(SEARCH_DEPTH + 1):
        for folder in level:
            if source := _animals10_in(folder) if name == "animals10" else _cifar10_in(folder):
                return source
        level = [subfolder for folder in level for subfolder in subfolders(folder)]
    return None


# ----------------------------------------------------------------------------------- folders of class folders


def _from_folder(tree: Folder, *, name: str = "", shown: Mapping[str, str] | None = None) -> Source:
    """The source in a folder as `walk.scan` found it, with the layout that `layout.detect_layout` finds.

    `shown` maps a folder's name to the name of its class, where they differ. Folder names that are equal after Unicode
    normalisation (NFC) are one class.
    """
    layout = detect_layout(tree)
    places: dict[tuple[str | None, str], list[Folder]] = defaultdict(list)
    for subset in layout.parts:
        for folder in layout.class_folders(subset):
            class_name = unicodedata.normalize("NFC", folder.name)
            places[subset, (shown or {}).get(class_name, class_name)].append(folder)
    class_names = tuple(sorted({class_name for _, class_name in places}))
    _check_classes(tree, layout, places, class_names)

    samples = [
        Sample(path.relative_to(tree.path).as_posix(), path, class_names.index(class_name), subset)
        for (subset, class_name), folders in sorted(places.items(), key=lambda item: (item[0][0] or "", item[0][1]))
        for folder in folders
        for path in folder.image_paths()
    ]
    ignored: dict[str, Counter[str]] = defaultdict(Counter)
    files: list[Path] = []
    for (_, class_name), folders in places.items():
        for folder in folders:
            ignored[class_name] += folder.other_endings()
            files += [place.path / name for place in folder.walk() for name in place.others]
    for folder in layout.entered:
        ignored[""].update(ending(file) for file in (*folder.images, *folder.others))
        files += [folder.path / name for name in (*folder.images, *folder.others)]
    return Source(
        name or tree.path.resolve().name,
        str(tree.path),
        class_names,
        tuple(samples),
        ignored={class_name: dict(counts) for class_name, counts in ignored.items() if counts},
        ignored_files=tuple(sorted(path.relative_to(tree.path).as_posix() for path in files)),
        notes=(*layout.notes, *_merged(places), *name_warnings(class_names), *_unfollowed(tree)),
    )


def _merged(places: Mapping[tuple[str | None, str], list[Folder]]) -> list[str]:
    return [
        f"one class: {', '.join(str(folder.path) for folder in folders)} (equal names after Unicode normalisation)"
        for folders in places.values()
        if len(folders) > 1
    ]


def _unfollowed(tree: Folder) -> list[str]:
    links = [str(folder.path / link) for folder in tree.walk() for link in folder.repeated]
    return [f"not followed: {listed(links)}, links to folders that are read already"] if links else []


def _check_classes(
    tree: Folder,
    layout: Layout,
    places: Mapping[tuple[str | None, str], list[Folder]],
    class_names: tuple[str, ...],
) -> None:
    """Raise ResnetlabError unless there are two classes, the same in each part, each with an image."""
    root = tree.path
    if not any(folder.num_images for folders in places.values() for folder in folders):
        others = listed_endings(tree.other_endings())
        found = f"No images in {root}" + (f", only files that are ignored: {others}" if others else "")
        notes = "".join(f" ({note})" for note in layout.notes)
        raise ResnetlabError(f"{found}{notes}. {EXPECTED} ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    if len(class_names) == 1:
        raise ResnetlabError(f"Only one class in {root}: {class_names[0]!r}. {EXPECTED}, and two classes or more.")
    for subset, part in layout.parts.items():
        missing = [name for name in class_names if (subset, name) not in places]
        if missing:
            alike = [
                warning for warning in name_warnings(class_names) if any(repr(name) in warning for name in missing)
            ]
            raise ResnetlabError(
                f"{part.path} has no folder for {listed(missing)}, which other parts of {root} have. "
                f"Expected the same class folders in each of train, val and test.{''.join(f' ({w})' for w in alike)}"
            )
        empty = [name for name in class_names if not any(folder.num_images for folder in places[subset, name])]
        if empty:
            endings: Counter[str] = sum((f.other_endings() for n in empty for f in places[subset, n]), Counter())
            ignored = f" There are only files that are ignored: {listed_endings(endings)}." if endings else ""
            raise ResnetlabError(
                f"No image in {part.path} for the class{'es' if len(empty) > 1 else ''} {listed(empty)}.{ignored} "
                "Expected at least one in each class: add images, or remove the folder."
            )


# ------------------------------------------------------------------------------------------------- Animals-10


def _animals10_in(folder: Path) -> Source | None:
    """Recognised by its Italian folder names, whole or divided into train, val and test."""
    if _has_class_folders(folder, ANIMALS10):
        return _from_folder(scan(folder), name="animals10", shown=ANIMALS10)
    return None


def _has_class_folders(folder: Path, names: Collection[str]) -> bool:
    """Whether a folder, or its training part, has exactly these folders."""
    below = subfolders(folder)
    parts = [folder, *(part for part in below if parse(part.name).role == "train")]
    return any({subfolder.name for subfolder in subfolders(part)} == set(names) for part in parts)


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
    if _has_class_folders(folder, CIFAR10):
        return _from_folder(scan(folder), name="cifar10")
    if all((folder / batch).is_file() for batch in CIFAR10_BATCHES):
        return _cifar10_batches(folder, {name: (folder / name).read_bytes() for name in CIFAR10_BATCHES})
    for pattern in (
        "cifar-10-python*.tar.gz",
        "cifar-10-batches-py*.tar.gz",
    ):  # not cifar-100's, nor the binary version
        for archive in sorted(folder.glob(pattern)):
            return _cifar10_archive(archive)
    return _cifar10_zips(folder)


def _cifar10_zips(folder: Path) -> Source | None:
    """Zip files that together hold the ten class folders; None where there are no such, whatever other files are."""
    samples, unreadable = [], None
    for path in sorted(folder.glob("*.zip")):
        try:
            with zipfile.ZipFile(path) as archive:
                members = Counter(archive.namelist())
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            unreadable = f"Cannot read {path}: {_brief(error)}. Expected a zip file; get it again."
            continue
        for name in members:
            member = PurePosixPath(name)
            if member.parent.name not in CIFAR10:
                continue
            if member.is_absolute() or ".." in member.parts or members[name] > 1:
                why = "twice, expected each once" if members[name] > 1 else "which leaves it: refused"
                raise ResnetlabError(f"{path} holds {name!r}, {why}. Get it again, or unpack it into class folders.")
            if is_image(member.name) and not any(map(is_skipped, member.parts)):
                subset = parse(member.parent.parent.name).role
                samples.append(Sample(name, path, CIFAR10.index(member.parent.name), subset, zipped=True))
    if len({sample.label for sample in samples}) < len(CIFAR10):
        if samples and unreadable:
            raise ResnetlabError(unreadable)
        return None
    return Source("cifar10", str(folder), CIFAR10, tuple(samples))


def _cifar10_archive(path: Path) -> Source:
    try:
        with tarfile.open(path) as archive:
            batches = {}
            for member in archive:
                if member.size > BATCH_BYTES:
                    raise tarfile.TarError(f"{member.name!r} claims {member.size:,} bytes")
                name = PurePosixPath(member.name).name
                if name in CIFAR10_BATCHES and (file := archive.extractfile(member)):
                    batches[name] = file.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise ResnetlabError(
            f"Cannot read {path}: {_brief(error)}. Expected {CIFAR10_URL}; remove the file and get it again."
        ) from error
    if missing := [name for name in CIFAR10_BATCHES if name not in batches]:
        raise ResnetlabError(f"{path} lacks {listed(missing)}. Expected {CIFAR10_URL}; get it again.")
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

    Unpickling can execute code, and this file is a download.
    """

    ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        # Named after the module of NumPy 1 or 2 that wrote it.
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        # How protocol 2 writes Python 3's bytes.
        ("_codecs", "encode"): lambda text, _encoding: text.encode("latin1"),
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


def _download_cifar10(searched: list[Path], progress: Report | None) -> Source:
    """Download CIFAR-10 to where Keras keeps it too. Not by Keras, whose import would fix the backend."""
    path = searched[-1] / "cifar-10-python.tar.gz"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            received = _fetch(CIFAR10_URL, temporary, progress)
            if received != CIFAR10_SHA256:
                raise ValueError(f"received a file with SHA-256 {received}, expected {CIFAR10_SHA256}")
    except Exception as error:
        raise ResnetlabError(
            f"CIFAR-10 is not below {_places(searched)}, and could not be downloaded: {_brief(error)}. "
            f"Get {CIFAR10_URL} and put it, as it is, into ./data or $RESNETLAB_DATA."
        ) from error
    return _cifar10_archive(path)


def _fetch(url: str, target: Path, progress: Report | None) -> str:
    """Download a file, and return its SHA-256 checksum."""
    checksum, done = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, target.open("wb") as file:
            total = int(answer.headers["Content-Length"] or 0)
            while block := answer.read(1 << 20):
                file.write(block)
                checksum.update(block)
                done += len(block)
                if progress and total:
                    progress("downloading (MiB)", done >> 20, total >> 20)
    except OSError as error:  # of the network, which `atomic_file` would take for one of the disk
        raise ResnetlabError(str(error)) from error
    return checksum.hexdigest()


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
