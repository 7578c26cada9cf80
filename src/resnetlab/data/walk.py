"""The folder scan shared by train, audit, evaluate and predict.

- Hidden files and folders (".name"), and files that operating systems create (see CLUTTER), are never data.
- A linked folder is read once; links to folders that are already read, and cycles, are not followed. Links to
  files are files.
- Run folders, created by training inside the data folder, are not data.
- A file is an image if it has a suffix of IMAGE_SUFFIXES; its content is checked by the audit.
- Entries are sorted by name, independently of the file system.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from resnetlab.errors import ResnetlabError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".avif"}
IMAGE_SUFFIXES |= {".ppm", ".pgm", ".pbm", ".heic", ".heif", ".hif"}

# Files that lie beside images and are none, so that ignoring them loses no image: texts, annotations, programs, models,
# archives, and the sidecars, films and sounds of cameras.
_DOCUMENTS = (
    ".txt .md .rst .csv .tsv .json .jsonl .xml .yaml .yml .toml .ini .cfg .names .log .html .htm .pdf .doc .docx .xls "
    ".xlsx .py .ipynb .sh .bat .m .mat .npy .npz .pkl .pickle .pt .pth .h5 .hdf5 .keras .onnx .tfrecord .tfrecords .db "
    ".sqlite .lst .idx .rec .bin .zip .tar .gz .tgz .bz2 .xz .7z .rar .md5 .sha1 .sha256 .cache .bak .url .lnk .dvc "
    ".aae .xmp .thm .lrv .mov .mp4 .m4v .avi .mkv .webm .wmv .3gp .wav .mp3 .m4a .ogg .flac"
)
DOCUMENT_SUFFIXES = frozenset(_DOCUMENTS.split())

CLUTTER = frozenset(  # in lower case
    {"__macosx", "__pycache__", "icon\r", "lost+found", "node_modules", "_vti_cnf"}
    | {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "zbthumbnail.info"}
    | {"$recycle.bin", "recycle.bin", "system volume information", "found.000"}
    | {"@eadir", "#recycle", "#snapshot", "@tmp", "@sharebin", "@syno", "@synoeastream"}  # Synology
    | {"@recycle", "@recently-snapshot", "@__thumb", "@transcode"}  # QNAP
)


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder as `scan` found it."""

    path: Path
    name: str
    images: tuple[str, ...] = ()  # names of the files directly in it that are images by their ending
    others: tuple[str, ...] = ()  # names of the other files directly in it
    folders: tuple[Folder, ...] = ()
    repeated: tuple[str, ...] = ()  # names of links in it to folders that are read elsewhere
    num_images: int = field(init=False)  # in it and below

    def __post_init__(self) -> None:
        total = len(self.images) + sum(folder.num_images for folder in self.folders)
        object.__setattr__(self, "num_images", total)

    def walk(self) -> Iterator[Folder]:
        """This folder and all below, parents first, in the order of names."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting.extend(reversed(folder.folders))

    def image_paths(self) -> list[Path]:
        """Images in it and below."""
        return [folder.path / name for folder in self.walk() for name in folder.images]

    def other_endings(self) -> Counter[str]:
        """How many files in it and below are no images, by ending."""
        return Counter(ending(name) for folder in self.walk() for name in folder.others)

    def holds_documents_only(self) -> bool:
        """Whether there are files in it or below, none of which could be an image of another format."""
        found = self.other_endings()
        return not self.num_images and bool(found) and found.keys() <= DOCUMENT_SUFFIXES


def is_clutter(name: str) -> bool:
    """Whether a file or folder of this name is created by an operating system, and never data."""
    return name.startswith("._") or name.casefold() in CLUTTER


def is_skipped(name: str) -> bool:
    """Whether the walk passes over a file or folder of this name."""
    return name.startswith(".") or is_clutter(name)


def is_image(name: str) -> bool:
    """By its ending only; names that the walk skips are no images."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not is_skipped(name)


def ending(name: str) -> str:
    """ ".txt" of "Notes.TXT"; "no ending" where there is none."""
    suffix = os.path.splitext(name)[1].lower()
    return suffix if re.fullmatch(r"\.\w[\w+~-]{0,11}", suffix) else "no ending"


def listed_endings(counts: Mapping[str, int]) -> str:
    """'12 .txt, 3 .cr2', most frequent first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count:,} {suffix}" for suffix, count in ordered)


def scan(root: Path) -> Folder:
    """Everything in `root` that can be data. Raises ResnetlabError where a folder cannot be read."""
    return _Scan(root).result()


def subfolders(path: Path) -> list[Path]:
    """Folders directly in `path` that `scan` would enter, in the order of names; none where it cannot be read."""
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in entries if _is_folder(entry) and not is_skipped(entry.name))
            return [path / name for name in names if not _holds_runs(path / name)]
    except OSError:  # a file, absent, or not ours to read
        return []


def _holds_runs(folder: Path) -> bool:
    runs = [folder / "run.json", *folder.glob("*/run.json")]
    if any(path.is_file() and path.with_name("recipe.json").is_file() for path in runs):
        return True
    comparisons = [folder / "compare.json", *folder.glob("*/compare.json")]
    return any(path.is_file() and path.with_name("compare.png").is_file() for path in comparisons)


def _is_ours(names: set[str]) -> bool:
    """Whether a folder with these files was made by `train` or `import`, or by `compare`."""
    return {"run.json", "recipe.json"} <= names or ("compare.json" in names and "compare.png" in names)


@dataclass
class _Node:
    path: Path
    real: str  # without links
    parent: _Node | None = None
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    built: list[Folder] = field(default_factory=list)  # its folders
    holds_run: bool = False  # one of its folders was a run folder, or one of `compare`

    @property
    def is_ours(self) -> bool:
        return _is_ours({*self.others, *self.images})

    @property
    def is_run(self) -> bool:
        return self.parent is not None and (
            self.is_ours or (self.holds_run and not self.images and not any(f.num_images for f in self.built))
        )


class _Scan:
    """The scan: first folders that are reached without links, then links, so that a real path takes precedence."""

    def __init__(self, root: Path) -> None:
        self.top = _Node(root, os.path.realpath(root))
        self.seen: set[str] = set()
        self.links: list[tuple[_Node, str]] = []
        self.nodes: list[_Node] = []  # parents first
        self._read(self.top)
        for parent, name in self.links:  # grows, by links in what is linked
            real = os.path.realpath(parent.path / name)
            if real in self.seen or Path(self.top.real).is_relative_to(real):
                parent.repeated.append(name)
            else:
                self._read(_Node(parent.path / name, real, parent))

    def _read(self, start: _Node) -> None:
        waiting = [start]
        while waiting:
            node = waiting.pop()
            if node.real in self.seen:
                continue
            self.seen.add(node.real)
            self.nodes.append(node)
            below = []
            for entry in _entries(node.path):
                if entry.is_dir(follow_symlinks=False):
                    below.append(_Node(node.path / entry.name, os.path.join(node.real, entry.name), node))
                elif _is_folder(entry):
                    self.links.append((node, entry.name))
                elif not entry.is_symlink() and not entry.is_file():
                    continue  # a pipe or a device: to read it might never end
                elif is_image(entry.name):
                    node.images.append(entry.name)  # where it is a dangling link, the audit reports it
                else:
                    node.others.append(entry.name)
            waiting.extend(reversed(below))

    def result(self) -> Folder:
        for node in reversed(self.nodes):
            built = Folder(
                node.path,
                node.path.name,
                tuple(node.images),
                tuple(node.others),
                tuple(sorted(node.built, key=lambda folder: folder.name)),
                tuple(node.repeated),
            )
            if node.parent is None:
                return built
            if node.is_run:
                node.parent.holds_run |= node.is_ours
            else:
                node.parent.built.append(built)
        raise AssertionError("the root is always read")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """`entry.is_dir()`, which raises OSError for a link to itself; without a system call where it is no link."""
    return os.path.isdir(entry) if entry.is_symlink() else entry.is_dir(follow_symlinks=False)


def _entries(path: Path) -> Iterable[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return sorted((entry for entry in entries if not is_skipped(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise ResnetlabError(f"Cannot read the folder {path}: {error.strerror}. Check its permissions.") from error
