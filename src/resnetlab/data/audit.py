"""Audit of a data set: decode every file once, in parallel, and set unusable ones aside with the reason."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from resnetlab.data.preprocess import (
    ImageProblem,
    Interpolation,
    Pixels,
    ReadFailure,
    decode,
    fit_square,
    pillow_without_warnings,
)
from resnetlab.data.sources import Reader, Sample, Source
from resnetlab.data.walk import DOCUMENT_SUFFIXES, listed_endings
from resnetlab.environment import usable_cores
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.progress import CountCallback

BLACKS, WHITES = bytes(range(9)), bytes(range(247, 256))  # value ranges of black and white
NEARLY = 0.99  # an image with this fraction of its values in one of them is nearly black or white
MIN_LEVELS = 20  # of one channel: with fewer, a range of values was probably lost
DOUBT_SIZE = 256  # size at which JPEGs are decoded to check suspicion, whatever size is requested
MAX_LOSS = 0.5  # a class that loses more than this fraction of its images stops the run unless confirmed
CHUNK = 32  # files a task: few enough to share out evenly, enough for the hand-over between threads not to count

# ------------------------------------------------------------------------------------------- files to records


@dataclass(frozen=True, slots=True)
class Record:
    """The audit's result for one image."""

    name: str
    label: int
    subset: str | None
    sha256: str  # of the file's bytes; of the pixels where the source is an array; "" if unreadable
    width: int = 0
    height: int = 0
    problem: str | None = None  # why it cannot be used; details in brackets
    conversions: tuple[str, ...] = ()
    suspicious: str | None = None  # usable, but it shows nothing: "constant", "nearly black", …


def inspect(
    sample: Sample, content: bytes, *, size: int, interpolation: Interpolation = "bilinear", whole: bool = False
) -> tuple[Record, Pixels | None]:
    """Decode one file: its record, and if it can be used its pixels, as `_fitted` has them."""
    record = Record(sample.name, sample.label, sample.subset, hashlib.sha256(content).hexdigest())
    try:
        decoded = decode(content, size=size)
    except ReadFailure:
        raise
    except ImageProblem as problem:
        return replace(record, problem=str(problem)), None
    doubt = suspicion(decoded.image)
    if doubt and decoded.image.width * decoded.image.height < decoded.width * decoded.height:  # a JPEG, reduced
        doubt = suspicion(decode(content, size=DOUBT_SIZE).image)
    record = replace(
        record,
        width=decoded.width,
        height=decoded.height,
        conversions=decoded.conversions,
        suspicious=doubt,
    )
    return record, _fitted(decoded.image, size, interpolation, whole)


def _fitted(image: Image.Image, size: int, interpolation: Interpolation, whole: bool) -> Pixels:
    """The centre square (size, size, 3), or where `whole` that and the squeezed image: (2, size, size, 3)."""
    square = fit_square(image, size, interpolation)
    if not whole:
        return square
    return np.stack([square, np.asarray(image.resize((size, size), Image.Resampling[interpolation.upper()]))])


def suspicion(image: Image.Image) -> str | None:
    """The reason to suspect that an RGB image was decoded or saved incorrectly, or None."""
    # About sixty pixels clear nearly every image. They are read one by one, as an operation that releases the
    # interpreter lock is slower when threads compete for it.
    pixel: Any = image.load()
    columns = range(image.width // 16, image.width, image.width // 8 + 1)
    rows = range(image.height // 16, image.height, image.height // 8 + 1)
    green = [pixel[x, y][1] for y in rows for x in columns]
    if len(set(green)) >= MIN_LEVELS and sum(8 < value < 247 for value in green) > len(green) // 4:
        return None
    counts = np.reshape(image.histogram(), (3, 256))
    levels = int((counts > 0).sum(axis=1).max())
    if levels == 1:
        return "constant"
    if counts[:, list(BLACKS)].sum() >= NEARLY * counts.sum():
        return "nearly black"
    if counts[:, list(WHITES)].sum() >= NEARLY * counts.sum():
        return "nearly white"
    return f"few levels ({levels} of 256)" if levels < MIN_LEVELS else None


def inspect_all(
    source: Source,
    *,
    size: int,
    interpolation: Interpolation = "bilinear",
    whole: bool = False,
    start: int = 0,
    workers: int | None = None,
    progress: CountCallback | None = None,
) -> Iterator[tuple[Record, Pixels | None]]:
    """`inspect` of every sample from `start` on, in order, a few chunks ahead of the consumer: constant memory.

    Threads, not processes: Pillow decodes without the interpreter's lock, they need no start and no copying,
    and on two cores they are as fast (2,800 against 2,700-3,100 photographs of 300x225 a second, at size 64).
    """
    total = len(source.samples)
    chunks = [range(first, min(first + CHUNK, total)) for first in range(start, total, CHUNK)]
    workers = workers or usable_cores()

    with source.reader() as read, ThreadPoolExecutor(workers) as pool, pillow_without_warnings():

        def examine(chunk: range) -> list[tuple[Record, Pixels | None]]:
            return [_examine(source, index, read, size, interpolation, whole) for index in chunk]

        pending: deque[Future[list[tuple[Record, Pixels | None]]]] = deque()
        done = start
        for ahead in range(len(chunks) + 2 * workers):
            if ahead < len(chunks):
                pending.append(pool.submit(examine, chunks[ahead]))
            if ahead >= 2 * workers and pending:
                results = pending.popleft().result()
                yield from results
                done += len(results)
                if progress:
                    progress(done, total)


def _examine(
    source: Source, index: int, read: Reader, size: int, interpolation: Interpolation, whole: bool
) -> tuple[Record, Pixels | None]:
    sample = source.samples[index]
    if source.images is not None:
        pixels = source.images[index]  # (height, width, 3)
        height, width = pixels.shape[:2]
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        record = Record(sample.name, sample.label, sample.subset, digest, width, height)
        return record, _fitted(Image.fromarray(pixels), size, interpolation, whole)
    try:
        with read(sample) as content:
            return inspect(sample, content, size=size, interpolation=interpolation, whole=whole)
    except ReadFailure as failure:
        raise ResnetlabError(
            f"{sample.path} could not be read: {failure}. Another attempt may succeed, so the image is not set aside: "
            "run the command again, or remove the file."
        ) from failure
    except ImageProblem as problem:  # no permission, a dangling link, a pipe, a damaged or encrypted zip file
        return Record(sample.name, sample.label, sample.subset, "", problem=str(problem)), None


# --------------------------------------------------------------------------------------- records to an audit


@dataclass(frozen=True, eq=False)
class Audit:
    """The audit of a data set.

    Attributes:
        source_name, location: of the data.
        class_names: in the order of the labels.
        records: of all images, in the source's order; those with a problem are set aside.
        ignored: number of non-image files, by extension.
        ignored_files: their names.
        notes: how the folders were understood.
        losses: of each class that loses most of its images: how many, and why.
        split: where the validation and test images of a training run come from.
    """

    source_name: str
    location: str
    class_names: tuple[str, ...]
    records: tuple[Record, ...]
    ignored: dict[str, int]
    ignored_files: list[str]
    notes: list[str]
    losses: dict[str, str]
    split: str = ""

    @classmethod
    def of(cls, source: Source, records: Sequence[Record]) -> Audit:
        """Examine copies too: one image under two labels, or on two sides of a given split, cannot be used.

        Raises ResnetlabError if a class has no usable image left.
        """
        settled = tuple(_settle_copies(records, source.class_names))
        usable = Counter(record.label for record in settled if record.problem is None)
        counts = {name: usable[label] for label, name in enumerate(source.class_names)}
        facts = source_fields(source, counts)
        audit = cls(source.name, source.location, source.class_names, settled, **facts)
        for label, class_name in enumerate(source.class_names):
            if not usable[label]:
                reasons = _tally(record.problem for record in settled if record.label == label)
                raise ResnetlabError(
                    f"No usable image in the class {class_name!r} of {source.location} ({reasons}). "
                    "Expected at least one: replace the files, or remove the class."
                )
        return audit

    @cached_property
    def usable(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.problem is None)

    @cached_property
    def set_aside(self) -> tuple[Record, ...]:
        return tuple(record for record in self.records if record.problem is not None)

    @cached_property
    def suspicious(self) -> tuple[Record, ...]:
        """Usable images that show nothing: constant, nearly black or white, or of few levels."""
        return tuple(record for record in self.usable if record.suspicious)

    @cached_property
    def class_counts(self) -> dict[str, int]:
        """Usable images of each class."""
        counts = Counter(record.label for record in self.usable)
        return {name: counts[label] for label, name in enumerate(self.class_names)}

    @cached_property
    def conversions(self) -> dict[str, int]:
        """How many usable images were converted, by what was done."""
        return dict(Counter(note for record in self.usable for note in record.conversions).most_common())

    @cached_property
    def duplicates(self) -> list[list[str]]:
        """Groups of usable images with the same bytes."""
        groups = defaultdict(list)
        for record in self.usable:
            groups[record.sha256].append(record.name)
        return [names for names in groups.values() if len(names) > 1]

    @cached_property
    def conflicts(self) -> list[list[str]]:
        """Groups of images with the same bytes under different labels; all of them are set aside."""
        groups = defaultdict(list)
        for record in self.set_aside:
            if (record.problem or "").startswith("two labels"):
                groups[record.sha256].append(record.name)
        return list(groups.values())

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source_name,
            "location": self.location,
            "found": len(self.records),
            "usable": len(self.usable),
            "classes": self.class_counts,
            "set_aside": [
                {"name": record.name, "class": self.class_names[record.label], "problem": record.problem}
                for record in self.set_aside
            ],
            "suspicious": [
                {"name": record.name, "class": self.class_names[record.label], "reason": record.suspicious}
                for record in self.suspicious
            ],
            "conversions": self.conversions,
            "duplicates": self.duplicates,
            "conflicts": self.conflicts,
            "ignored": self.ignored,
            "ignored_files": self.ignored_files,
            "notes": self.notes,
            "losses": self.losses,
            "split": self.split,
            "median_size": list(self._median_size),
        }

    @property
    def _median_size(self) -> tuple[int, int]:
        widths, heights = ([getattr(record, side) for record in self.usable] for side in ("width", "height"))
        return int(np.median(widths)), int(np.median(heights))

    def summary(self) -> str:
        """The audit in a few lines for people."""
        width, height = self._median_size
        counts = self.class_counts
        rarest, commonest = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        if counts[rarest] == counts[commonest]:
            spread = f"{counts[rarest]:,} each"
        else:
            spread = f"from {counts[rarest]:,} ({rarest}) to {counts[commonest]:,} ({commonest})"
        lines = [
            f"{self.source_name}: {len(self.usable):,} usable images of {len(self.records):,}",
            f"  in          {self.location}",
            f"  classes     {len(counts)}, {spread}",
            f"  size        {width}x{height} (median)",
        ]
        if self.conversions:
            lines.append("  converted   " + ", ".join(f"{n:,} {what}" for what, n in self.conversions.items()))
        if self.duplicates:
            copies = sum(map(len, self.duplicates)) - len(self.duplicates)
            lines.append(f"  duplicates  {copies:,} copies of {len(self.duplicates):,} images, same side of the split")
            lines += _first(" = ".join(names) for names in self.duplicates)
        lines += [f"  folders     {note}" for note in self.notes]
        if self.ignored:
            lines.append(f"  ignored     {ignored_text(self.ignored)}")
            lines += _first(self.ignored_files)
        lines += [
            f"  losses      {name}: {loss}: train stops without --allow-losses" for name, loss in self.losses.items()
        ]
        if self.suspicious:
            lines.append(f"  suspicious  {len(self.suspicious):,} (used all the same)")
            lines += _listing((record.name, record.suspicious or "") for record in self.suspicious)
        lines.append(f"  set aside   {len(self.set_aside):,}")
        lines += _listing((record.name, record.problem or "") for record in self.set_aside)
        if self.split:
            lines.append("  split       " + self.split.replace("\n", "\n              "))
        return "\n".join(lines)


def audit(source: Source, *, workers: int | None = None, progress: CountCallback | None = None) -> Audit:
    """Decode and examine every image of `source`; raises ResnetlabError if a class has nothing usable."""
    if source.packed is not None:
        raise UsageError(f"{source.location} holds packed images: the data was audited when it was packed.")
    # Any size serves: the smallest lets a JPEG skip most of the inverse transform.
    return Audit.of(source, [record for record, _ in inspect_all(source, size=1, workers=workers, progress=progress)])


def source_fields(source: Source, usable: Mapping[str, int]) -> dict[str, Any]:
    """The audit fields that depend only on the source and the number of `usable` images per class."""
    return {
        "ignored": dict(source.ignored_endings.most_common()),
        "ignored_files": list(source.ignored_files),
        "notes": list(source.notes),
        "losses": _losses(source, usable),
    }


def _losses(source: Source, usable: Mapping[str, int]) -> dict[str, str]:
    """Classes that lose more than a fraction MAX_LOSS of their images: ignored by their ending, or set aside."""
    found = Counter(source.class_names[sample.label] for sample in source.samples)
    losses = {}
    for name in source.class_names:
        ignored = {e: n for e, n in source.ignored.get(name, {}).items() if e not in DOCUMENT_SUFFIXES}
        total = found[name] + sum(ignored.values())
        if total - usable[name] > MAX_LOSS * total:
            aside = f"{found[name] - usable[name]:,} set aside" if found[name] > usable[name] else ""
            why = ", ".join(filter(None, [listed_endings(ignored) + " ignored" if ignored else "", aside]))
            losses[name] = f"{total - usable[name]:,} of {total:,} files cannot be used ({why})"
    return losses


def require_few_losses(source: Source, usable: Mapping[str, int]) -> None:
    """Raise ResnetlabError if a class loses most of its images."""
    if losses := _losses(source, usable):
        raise ResnetlabError(
            f"Most images are lost of {', '.join(f'{name!r}: {loss}' for name, loss in list(losses.items())[:5])} in "
            f"{source.location}. Expected at most half of each class. See `resnetlab audit`; convert or replace the "
            "files (.jpg and .png are read), or train without them with --allow-losses."
        )


def ignored_text(ignored: Mapping[str, int]) -> str:
    """'12 non-image files (by extension or location): 9 .txt, 3 .cr2'."""
    return f"{sum(ignored.values()):,} non-image files (by extension or location): {listed_endings(ignored)}"


def _settle_copies(records: Sequence[Record], class_names: tuple[str, ...]) -> Iterator[Record]:
    """The records, with a problem for copies under two labels, and for copies of what is held out.

    If an image is in several subsets of a given split, its test copy is kept, else its validation copy.
    """
    copies = defaultdict(list)
    for record in records:
        if record.problem is None:
            copies[record.sha256].append(record)
    strictest = {"test": 0, "validation": 1, "train": 2, None: 3}
    found = {  # once for each group: a placeholder may have a copy for every image
        sha256: (sorted({copy.label for copy in group}), min(group, key=lambda copy: strictest[copy.subset]))
        for sha256, group in copies.items()
        if len(group) > 1
    }
    for record in records:
        labels, kept = found.get(record.sha256, ([], record)) if record.problem is None else ([], record)
        if len(labels) > 1:
            yield replace(record, problem=f"two labels ({', '.join(class_names[label] for label in labels)})")
        elif record.subset != kept.subset:
            yield replace(record, problem=f"copy of a {kept.subset} image ({kept.name})")
        else:
            yield record


def _kind(problem: str | None) -> str:
    return (problem or "").partition(" (")[0]


def _first(names: Iterable[str], count: int = 5) -> list[str]:
    """Lines of the first names, and how many more there are."""
    lines = [f"      {name}" for name in names]
    return lines[:count] + ([f"      and {len(lines) - count:,} more: see --json"] if len(lines) > count else [])


def _listing(found: Iterable[tuple[str, str]]) -> list[str]:
    """Lines of names by the kind of reason, five of each."""
    by_kind = defaultdict(list)
    for name, reason in found:
        by_kind[_kind(reason)].append(f"      {name}{reason.removeprefix(_kind(reason))}")
    lines = []
    for kind, names in by_kind.items():
        lines += [f"    {kind}: {len(names):,}", *names[:5]]
        lines += [f"      and {len(names) - 5:,} more"] if len(names) > 5 else []
    return lines


def _tally(problems: Iterator[str | None]) -> str:
    counts = Counter(_kind(problem) for problem in problems if problem)
    return ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
