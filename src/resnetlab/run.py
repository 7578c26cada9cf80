"""The run folder: all that any command needs of a training run, every file of it written atomically. No Keras here.

run.json            what was trained on what, and how far it came
recipe.json         every hyperparameter
environment.json    versions, machine, settings
split.csv           every image: name, class, subset, content hash
ancestors.csv       every image of the runs that the weights come from, the whole chain: content hash, strongest subset
metrics.jsonl       one line per epoch
best.weights.h5     the weights with the lowest validation loss (the last ones without validation)
last.weights.h5     the weights after the last finished epoch
checkpoint.npz      the whole state of training, for --resume
evaluation.json, predictions.npz, curves.png, confusion.png, reliability.png
"""

from __future__ import annotations

import csv
import json
import math
import os
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.recipes import Recipe

FORMAT = 1
DIGITS = 16  # of a content hash, as kept in a run folder
STRONGEST = {"train": 0, "validation": 1, "test": 2}  # the subset that counts where an image had several
UNDECODABLE = "backslashreplace"  # bytes of a file's name that are no UTF-8 become what JSON has for them: \\udc..


class Run:
    """A run folder at `path`. Use `Run.create` for a new one and `Run.open` for one that exists."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe_file = path / "recipe.json"
        self.best_weights = path / "best.weights.h5"
        self.last_weights = path / "last.weights.h5"
        self.checkpoint = path / "checkpoint.npz"
        self.metrics_file = path / "metrics.jsonl"

    @classmethod
    def create(cls, path: Path, *, recipe: Recipe, environment: dict[str, Any], facts: dict[str, Any]) -> Run:
        """Make the folder and begin a run in it. Raises UsageError as `require_vacant` does."""
        cls.require_vacant(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "recipe.json").open("x").close()  # of two processes that found it empty, the second fails here
        except FileExistsError as error:
            raise (_occupied(path) if path.is_dir() else _cannot_make(path, error)) from None
        except OSError as error:
            raise _cannot_make(path, error) from None
        run = cls(path)
        run.write_json("recipe.json", recipe.model_dump(mode="json"))
        run.write_json("environment.json", environment)
        run.update(format=FORMAT, status="started", **facts)
        return run

    @staticmethod
    def require_vacant(path: Path) -> None:
        """Raise UsageError where something is in the way: a run is never overwritten."""
        try:
            occupied = path.exists() and any(path.iterdir())
        except OSError as error:
            raise _cannot_make(path, error) from None
        if occupied:
            raise _occupied(path)

    @classmethod
    def open(cls, path: Path) -> Run:
        """Open an existing run folder. Raises UsageError, saying what is missing, where it is not one."""
        run = cls(path)
        if not path.is_dir():
            raise UsageError(f"Run folder {path}: no such folder. Expected one made by `resnetlab train`.")
        for name in ("run.json", "recipe.json"):
            if not (path / name).is_file():
                raise UsageError(
                    f"{path} is not a run folder: it has no {name}. Expected a folder made by `resnetlab train`."
                )
        if run.facts().get("format") != FORMAT:
            received = run.facts().get("format")
            raise ResnetlabError(f"{path}: received run format {received!r}, this version reads {FORMAT}.")
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

    def facts(self) -> dict[str, Any]:
        return self.read_json("run.json")

    def update(self, **facts: Any) -> None:
        known = self.facts() if (self.path / "run.json").exists() else {}
        self.write_json("run.json", known | facts)

    def recipe(self) -> Recipe:
        try:
            return Recipe().changed(**self.read_json("recipe.json"))
        except UsageError as error:
            raise ResnetlabError(f"{self.recipe_file} is damaged, or of another version. {error}") from None

    def weights(self) -> Path:
        """The best weights there are. Raises ResnetlabError if the run has not finished its first epoch."""
        for path in (self.best_weights, self.last_weights):
            if path.exists():
                return path
        raise ResnetlabError(
            f"{self.path} has no weights yet: no epoch was finished. Go on with "
            f"`resnetlab train --resume {shlex.quote(str(self.path))}`."
        )

    def read_json(self, name: str) -> dict[str, Any]:
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise ValueError(f"received a {type(value).__name__}, expected an object")
        except (OSError, ValueError) as error:
            raise ResnetlabError(f"{self.path / name} cannot be read: {error}.") from None
        return value

    def write_json(self, name: str, value: Any) -> None:
        text = json.dumps(_finite(value), indent=2, ensure_ascii=False) + "\n"
        with atomic(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8", errors=UNDECODABLE)

    def metrics(self) -> list[dict[str, Any]]:
        """The records of the finished epochs."""
        if not self.metrics_file.exists():
            return []
        try:
            return [json.loads(line) for line in self.metrics_file.read_text(encoding="utf-8").splitlines()]
        except (OSError, ValueError) as error:
            raise ResnetlabError(f"{self.metrics_file} cannot be read: {error}.") from None

    def write_metrics(self, records: Iterable[dict[str, Any]]) -> None:
        with atomic(self.metrics_file) as temporary:
            lines = (json.dumps(_finite(record)) + "\n" for record in records)
            temporary.write_text("".join(lines), encoding="utf-8")

    def write_split(self, rows: Iterable[tuple[str, str, str, str]]) -> None:
        """Rows of (name, class name, subset, content hash)."""
        with (
            atomic(self.path / "split.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8", errors=UNDECODABLE) as file,
        ):
            writer = csv.writer(file)
            writer.writerow(("name", "class", "subset", "hash"))
            writer.writerows(rows)

    def split(self) -> dict[str, str]:
        """Subset by content hash, as it was when the run began."""
        return self._read_subsets("split.csv")

    def write_ancestors(self, origin: Run) -> None:
        """Keep what `origin`, and the runs before it, used each image for: they may be moved or deleted."""
        with atomic(self.path / "ancestors.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("hash", "subset"))
            writer.writerows(origin.history().items())
        self.update(origin_unknown=origin.has_unknown_origin())

    def ancestors(self) -> dict[str, str]:
        """The strongest subset by content hash in the runs that this one's weights come from; its split inherits it."""
        return self._read_subsets("ancestors.csv") if (self.path / "ancestors.csv").exists() else {}

    def history(self) -> dict[str, str]:
        """The strongest subset by content hash in this run and all before it."""
        return strongest((self._before(), self.split()))

    def has_unknown_origin(self) -> bool:
        """Whether weights were imported, here or in a run before: what they were trained on is not recorded."""
        facts = self.facts()
        if facts.get("data") is None:
            return True
        if "origin_unknown" in facts or facts.get("weights") is None:
            return bool(facts.get("origin_unknown"))
        origin = self._origin()
        return origin is None or origin.has_unknown_origin()

    def _before(self) -> dict[str, str]:
        """`ancestors`; where a run of an earlier version has no such file, from its origin, if that is still there."""
        origin = None if (self.path / "ancestors.csv").exists() else self._origin()
        return self.ancestors() if origin is None else origin.history()

    def _origin(self) -> Run | None:
        path = self.facts().get("weights")
        return Run.open(Path(path)) if path is not None and (Path(path) / "run.json").is_file() else None

    def _read_subsets(self, name: str) -> dict[str, str]:
        try:
            with (self.path / name).open(newline="", encoding="utf-8") as file:
                return {row["hash"]: row["subset"] for row in csv.DictReader(file)}
        except (OSError, KeyError, ValueError) as error:
            raise ResnetlabError(f"{self.path / name} cannot be read: {error}.") from None

    def save(self, name: str, write: Callable[[Path], None]) -> None:
        """Have `write` make a file of this name, atomically."""
        with atomic(self.path / name) as temporary:
            write(temporary)

    def save_weights(self, name: str, network: Any) -> None:
        """Save the weights of a Keras model, atomically."""

        def write(path: Path) -> None:
            named = path.with_name(path.name + ".weights.h5")  # the ending that Keras asks for
            network.save_weights(named)
            named.replace(path)

        self.save(name, write)


def strongest(splits: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """The strongest subset of each image in several splits by hash: one trained on once is a training image."""
    found: dict[str, str] = {}
    for subsets in splits:
        for content, subset in subsets.items():
            if subset in STRONGEST and STRONGEST[subset] < STRONGEST.get(found.get(content, ""), len(STRONGEST)):
                found[content] = subset
    return found


def _occupied(path: Path) -> UsageError:
    return UsageError(
        f"The run folder {path} is not empty. Choose another with --run, or go on with "
        f"--resume {shlex.quote(str(path))}."
    )


def _cannot_make(path: Path, error: OSError) -> UsageError:
    return UsageError(f"Cannot make the run folder {path}: {error.strerror}. Choose another with --run.")


@contextmanager
def atomic(target: Path) -> Iterator[Path]:
    """A path to write to: what was written replaces `target` if the block ends well, and vanishes if it does not."""
    temporary = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise ResnetlabError(f"Cannot write {target}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def _finite(value: Any) -> Any:
    """`value` with NaN and infinity as null: JSON has neither."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
