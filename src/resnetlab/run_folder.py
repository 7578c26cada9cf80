"""The run folder, which holds everything about a training run; files are written atomically. Imports no Keras.

run.json            model, data and state of training: `RunInfo`
recipe.json         every hyperparameter
environment.json    versions, machine, settings
split.csv           every image: name, class, subset, content hash
ancestors.csv       every image of the runs that the initial weights descend from: content hash, strongest subset
import.json         for imported weights: their origin, and how they were checked
metrics.jsonl       one line per epoch
best.weights.h5     the weights with the lowest validation loss (the last ones without validation)
last.weights.h5     the weights after the last finished epoch
checkpoints/        the whole state of training at the last few checkpoints, for --resume
.lock               held by the process that trains
evaluation.json, predictions.npz, curves.png, confusion.png, reliability.png
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import shlex
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from itertools import count
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, InstanceOf, ValidationError

from resnetlab import environment, results
from resnetlab.atomic import atomic_file, flush, locked, remove_leftovers
from resnetlab.checksums import add_checksum
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.recipes import Recipe
from resnetlab.untrusted import parse_json

FORMAT = 2
DIGITS = 16  # of a content hash, as kept in a run folder
DRAWN = ("report.html", "confusion.png", "reliability.png", "curves.png")  # of an evaluation
SUBSET_PRIORITY = {"train": 0, "validation": 1, "test": 2}  # of several subsets of an image, the lowest counts
UNDECODABLE = "backslashreplace"  # non-UTF-8 bytes of a file name are written as JSON escapes: \\udc..

Status = Literal["started", "interrupted", "finished", "diverged", "imported"]
Text = InstanceOf[str]  # a file name may have non-UTF-8 bytes, which pydantic's str rejects


class RunInfo(BaseModel):
    """The content of run.json.

    Attributes:
        format: version of this schema; `read` converts format 1.
        status: "started" until training ends in one of the other ways; "imported" for weights trained elsewhere.
        model: name of the architecture.
        class_names: one for each logit.
        source: name of the data, or where imported weights come from.
        data: a known data set's name or a folder, for `resolve`; None for imported weights.
        commit: of resnetlab's checkout; None where it is installed from a package.
        pack: key of the packed images.
        allow_losses: a class may lose most of its images to the audit.
        weights: run folder of the initial weights; None for random ones.
        origin_unknown: whether the initial weights were trained on images that are not recorded.
        backend, device, device_name: those of the most recent training session.
        devices, processes: how many trained together most recently.
        log: loggers that training and evaluation also write to, such as "tensorboard".
        deterministic: only kernels that give the same result each time were allowed.
        split_sha256: checksum of split.csv; None in runs of earlier versions.
        step, epoch: number of finished steps and epochs.
        best_epoch: the epoch of best.weights.h5, from 1; 0 before the first.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    status: Status = "started"
    model: str
    class_names: tuple[Text, ...]
    source: Text
    data: Text | None = None
    commit: str | None = None
    pack: str | None = None
    allow_losses: bool = False
    weights: Text | None = None
    origin_unknown: bool | None = None
    backend: str | None = None
    device: str | None = None
    device_name: str | None = None
    devices: int = 1
    processes: int = 1
    log: tuple[str, ...] = ()
    deterministic: bool = False
    split_sha256: str | None = None
    step: int = 0
    epoch: int = 0
    best_epoch: int = 0

    def best_record(self, records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        """The record of the best epoch, of all `records` of metrics.jsonl; empty where there is none."""
        return records[self.best_epoch - 1] if 0 < self.best_epoch <= len(records) else {}

    @classmethod
    def read(cls, value: Mapping[str, Any], path: Path) -> RunInfo:
        """The content of run.json, `value`, of this format or of format 1. Raises ResnetlabError, naming `path`."""
        fields = dict(value)
        if fields.get("format") == 1:  # resnetlab 0.1; its notebook added other fields, and its imports had no data
            fields = {"allow_losses": True, "source": ""} | {k: v for k, v in fields.items() if k in cls.model_fields}
            fields |= {"format": FORMAT}
            if fields.get("status") == "ported":
                fields["status"] = "imported"
        if fields.get("format") != FORMAT:
            raise ResnetlabError(
                f"{path}: received run format {fields.get('format')!r}, this version of resnetlab reads 1 and {FORMAT}."
            )
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ResnetlabError(f"{path / 'run.json'} is damaged: {problems}.") from None


class RunFolder:
    """A run folder at `path`. Use `RunFolder.create` for a new one and `RunFolder.open` for one that exists."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.json"
        self.best_weights = path / "best.weights.h5"
        self.last_weights = path / "last.weights.h5"
        self.checkpoints = path / "checkpoints"
        self.metrics_file = path / "metrics.jsonl"
        self._holder: int | None = None  # the thread that trains it by this object

    @classmethod
    def create(cls, path: Path, *, recipe: Recipe, info: RunInfo) -> RunFolder:
        """Create the folder of a new run, with its machine and commit. Raises UsageError as `require_empty` does."""
        cls.require_empty(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            flush(path.parent)
            (path / "recipe.json").open("x").close()  # if two processes found it empty, the second fails here
        except FileExistsError as error:
            raise (_occupied(path) if path.is_dir() else _cannot_make(path, error)) from None
        except OSError as error:
            raise _cannot_make(path, error) from None
        run = cls(path)
        run.write_json("recipe.json", recipe.model_dump(mode="json"))
        run.write_json("environment.json", environment.snapshot())
        run.write_json("run.json", info.model_copy(update={"commit": results.commit()}).model_dump())
        return run

    @staticmethod
    def require_empty(path: Path) -> None:
        """Raise UsageError if `path` exists and is not an empty folder: a run is never overwritten."""
        try:
            occupied = path.exists() and any(path.iterdir())
        except OSError as error:
            raise _cannot_make(path, error) from None
        if occupied:
            raise _occupied(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder. Raises UsageError, saying what is missing, where it is not one."""
        if not path.is_dir():
            raise UsageError(f"Run folder {path}: no such folder. Expected one made by `resnetlab train`.")
        for name in ("run.json", "recipe.json"):
            if not (path / name).is_file():
                raise UsageError(
                    f"{path} is not a run folder: it has no {name}. Expected a folder made by `resnetlab train`."
                )
        run = cls(path)
        run.info()
        return run

    @staticmethod
    def new_folder(data: str, model: str) -> Path:
        """Make an empty folder below runs/, named by data, model and time, with a number where that is taken."""
        first = Path("runs") / f"{data}-{model}-{datetime.now():%Y%m%d-%H%M%S}"
        for number in count(1):
            path = first if number == 1 else first.with_name(f"{first.name}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError as error:
                if not first.parent.is_dir():
                    raise _cannot_make(path, error) from None
            except OSError as error:
                raise _cannot_make(path, error) from None
            else:
                return path
        raise AssertionError("count() does not end")

    def info(self) -> RunInfo:
        return RunInfo.read(self.read_json("run.json"), self.path)

    def update(self, **changes: Any) -> None:
        """Change fields of run.json."""
        self.write_json("run.json", RunInfo.read(self.info().model_dump() | changes, self.path).model_dump())

    def recipe(self) -> Recipe:
        try:
            return Recipe.stored(self.read_json("recipe.json"))
        except UsageError as error:
            raise ResnetlabError(f"{self.recipe_file} is damaged, or of another version. {error}") from None

    @contextmanager
    def training_lock(self) -> Iterator[None]:
        """Hold the run for training; what killed processes have left half-written is removed.

        Within the context, the same thread may hold it again by this object.

        Raises:
            UsageError: another process trains it.
        """
        if self._holder == threading.get_ident():
            yield
            return
        with ExitStack() as held:
            try:
                held.enter_context(locked(self.path / ".lock"))
                for folder in (self.path, self.checkpoints):
                    remove_leftovers(folder)
            except TimeoutError:
                raise UsageError(
                    f"Another process is training {self.path}. Wait for it, stop it, or choose another folder with "
                    "--run."
                ) from None
            except OSError as error:
                raise ResnetlabError(f"{self.path} cannot be locked for training: {error.strerror or error}.") from None
            self._holder = threading.get_ident()
            held.callback(setattr, self, "_holder", None)
            yield

    def weights(self) -> Path:
        """The best weights. Raises ResnetlabError if the run has not finished its first epoch, or they are missing."""
        if self.best_weights.exists():
            return self.best_weights
        if self.last_weights.exists():
            raise ResnetlabError(
                f"{self.best_weights} is missing. The weights of the last epoch are there: to use them instead, copy "
                f"{self.last_weights.name} to {self.best_weights.name}."
            )
        raise ResnetlabError(
            f"{self.path} has no weights yet: no epoch was finished. Resume it with "
            f"`resnetlab train --resume {shlex.quote(str(self.path))}`."
        )

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            value = parse_json((self.path / name).read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise ValueError(f"received a {type(value).__name__}, expected an object")
        except (OSError, ValueError) as error:
            raise ResnetlabError(f"{self.path / name} cannot be read: {error}.") from None
        return value

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n"
        with atomic_file(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors=UNDECODABLE)

    def metrics(self) -> list[dict[str, Any]]:
        """The records of the finished epochs."""
        if not self.metrics_file.exists():
            return []
        try:
            return [parse_json(line) for line in self.metrics_file.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise ResnetlabError(f"{self.metrics_file} cannot be read: {error}.") from None

    def write_metrics(self, records: Iterable[dict[str, Any]]) -> None:
        with atomic_file(self.metrics_file) as temporary:
            lines = (json.dumps(_finite(record)) + "\n" for record in records)
            temporary.write_text("".join(lines), encoding="utf-8")

    def write_split(self, rows: Iterable[tuple[str, str, str, str]]) -> None:
        """Rows of (name, class name, subset, content hash)."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(("name", "class", "subset", "hash"))
        writer.writerows(rows)
        content = text.getvalue().encode("utf-8", errors=UNDECODABLE)
        self.update(split_sha256=hashlib.sha256(content).hexdigest())
        with atomic_file(self.path / "split.csv") as temporary:
            temporary.write_bytes(content)

    def split(self) -> dict[str, str]:
        """Subset by content hash, as it was when the run began."""
        expected = self.info().split_sha256
        if expected is not None and self._sha256("split.csv") != expected:
            raise ResnetlabError(
                f"{self.path / 'split.csv'} is damaged: it is not what was saved, by its checksum. Without it, it is "
                "not known which images the run was trained on. Restore it from a copy."
            )
        return self._read_subsets("split.csv")

    def classes_of_images(self) -> dict[str, str]:
        """Class by content hash, `as_written`, when the run began; empty for a run that does not record it."""
        rows = self._read_csv("split.csv", "hash")
        return {row["hash"]: row["class"] for row in rows if row.get("class")}

    def image_names(self) -> list[str]:
        """The names of all images when the run began, `as_written`."""
        return [row["name"] for row in self._read_csv("split.csv", "hash") if row.get("name")]

    def import_notes(self) -> list[str]:
        """What import.json says that may affect predictions; nothing for weights that were not imported."""
        if not (self.path / "import.json").is_file():
            return []
        record = self.read_json("import.json")
        notes, check = [record["note"]] if record.get("note") else [], record.get("check") or {}
        if assumed := record.get("assumed"):
            notes.append(f"assumed, as the weights do not state it: {', '.join(assumed)}; see {self.recipe_file}")
        if not check.get("against"):
            notes.append(f"the imported weights were not compared with another implementation: {check.get('why')}")
        return notes

    def _sha256(self, name: str) -> str:
        try:
            with (self.path / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ResnetlabError(f"{self.path / name} cannot be read: {error}.") from None

    def write_ancestors(self, origin: RunFolder) -> None:
        """Record the subset of each image in `origin` and its ancestors, as those folders may be moved or deleted."""
        with atomic_file(self.path / "ancestors.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("hash", "subset"))
            writer.writerows(origin.used_images().items())
        self.update(origin_unknown=origin.has_unknown_origin())

    def ancestors(self) -> dict[str, str]:
        """Strongest subset by content hash in the runs that the initial weights descend from; the split inherits it."""
        return self._read_subsets("ancestors.csv") if (self.path / "ancestors.csv").exists() else {}

    def used_images(self) -> dict[str, str]:
        """The strongest subset by content hash in this run and all before it."""
        subsets = []
        for run in self._lineage():
            subsets.append(run.split())
            if (run.path / "ancestors.csv").exists():  # runs of earlier versions lack it
                subsets.append(run.ancestors())
                break
        return strongest(reversed(subsets))

    def has_unknown_origin(self) -> bool:
        """Whether this run or an ancestor has imported weights, whose training images are not recorded."""
        for run in self._lineage():
            info = run.info()
            if info.data is None:
                return True
            if info.origin_unknown is not None or info.weights is None:
                return bool(info.origin_unknown)
        return True  # the next run no longer exists

    def _lineage(self) -> Iterator[RunFolder]:
        """This run, the one that its initial weights are of, and so on, as far as they still exist."""
        run, seen = self, {self.path.resolve()}
        yield run
        while (path := run.info().weights) is not None and is_run_folder(path):
            run = RunFolder.open(Path(path))
            if run.path.resolve() in seen:
                raise ResnetlabError(f"{self.path / 'run.json'} is damaged: its `weights` lead back to {run.path}.")
            seen.add(run.path.resolve())
            yield run

    def class_counts(self) -> dict[str, Counter[str]]:
        """By class, the number of images in each subset, copies included, as it was when the run began."""
        counts: dict[str, Counter[str]] = {name: Counter() for name in self.info().class_names}
        names = {as_written(name): name for name in counts}
        for row in self._read_csv("split.csv", "class", "subset"):
            counts.setdefault(names.get(row["class"], row["class"]), Counter())[row["subset"]] += 1
        return counts

    def _read_subsets(self, name: str) -> dict[str, str]:
        return {row["hash"]: row["subset"] for row in self._read_csv(name, "hash", "subset")}

    def _read_csv(self, name: str, *columns: str) -> list[dict[str, str]]:
        try:
            with (self.path / name).open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            if rows and (missing := set(columns) - rows[0].keys()):
                raise ValueError(f"it has no column {', '.join(sorted(missing))}")
            return rows
        except (OSError, ValueError, csv.Error) as error:
            raise ResnetlabError(f"{self.path / name} cannot be read: {error}.") from None

    def forget_evaluation(self) -> None:
        """Remove what describes weights, or a split, that are about to be replaced."""
        for name in ("evaluation.json", "predictions.npz", "label_errors.csv", *DRAWN):
            (self.path / name).unlink(missing_ok=True)

    def save(self, name: str, write: Callable[[Path], None]) -> None:
        """Write the file `name` atomically: `write` is called with a temporary path."""
        with atomic_file(self.path / name) as temporary:
            write(temporary)

    def save_weights(self, name: str, network: Any) -> None:
        """Save the weights of a Keras model with a checksum, atomically; `name` ends in ".weights.h5"."""

        def write(path: Path) -> None:
            network.save_weights(path)
            add_checksum(path)

        self.save(name, write)


def is_run_folder(path: str | PathLike[str]) -> bool:
    """Whether there is a run in `path`, in which "~" is the user's home."""
    return (Path(path).expanduser() / "run.json").is_file()


def strongest(splits: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The strongest subset of each image (by hash) over several splits: training before validation before test."""
    found: dict[str, str] = {}
    for subsets in splits:
        for content, subset in subsets.items():
            if subset in SUBSET_PRIORITY and SUBSET_PRIORITY[subset] < SUBSET_PRIORITY.get(
                found.get(content, ""), len(SUBSET_PRIORITY)
            ):
                found[content] = subset
    return found


def as_written(name: str) -> str:
    """A name as split.csv has it, where bytes that are not UTF-8 are escaped."""
    return name.encode("utf-8", errors=UNDECODABLE).decode()


def _occupied(path: Path) -> UsageError:
    resumable = is_run_folder(path) and any((path / "checkpoints").glob("step-*.npz"))
    more = f", or resume it with `resnetlab train --resume {shlex.quote(str(path))}`" if resumable else ""
    return UsageError(f"The run folder {path} is not empty. Choose another with --run{more}.")


def _cannot_make(path: Path, error: OSError) -> UsageError:
    return UsageError(f"Cannot make the run folder {path}: {error.strerror}. Choose another with --run.")


def _finite(value: Any) -> Any:
    """`value` with NaN and infinities replaced by None, as JSON has neither."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
