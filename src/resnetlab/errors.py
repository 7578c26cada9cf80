"""Errors that a user can act on: each states what was received, what was expected, and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# TensorFlow puts a heading, the place in the graph and its Python stack before the cause, and hints after it.
_UNINFORMATIVE = re.compile(
    r"Graph execution error:|Detected at node|Traceback \(most recent|<stack traces|Hint:|\[Op:"
)
_OUT_OF_MEMORY = re.compile(
    r"\boom\b|out of memory|out_of_memory|outofmemory|resource[_ ]?exhausted|bad_alloc|alloc_failed|memoryerror"
    r"|(cannot|can't|unable to|failed to|could not) allocate|not enough memory",
    re.IGNORECASE,
)


class ResnetlabError(Exception):
    """The operation failed (exit code 1)."""

    exit_code = 1


class WriteError(ResnetlabError):
    """A file cannot be written: no space, no permission, a disk that failed."""


class ProcessLost(ResnetlabError):
    """Another process of those that train together has ended."""


class UsageError(ResnetlabError):
    """The request itself is wrong: an unknown name, a value out of range (exit code 2)."""

    exit_code = 2


def unknown_name(kind: str, received: str, known: Iterable[str], *, hint: str = "") -> UsageError:
    """A UsageError for an unknown name of the given `kind` (model, recipe, key), with the closest known names."""
    known = list(known)
    nearest = difflib.get_close_matches(received, known, n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    listing = "" if nearest or len(known) > 16 else f" Known: {', '.join(known)}."
    return UsageError(f"Unknown {kind} {received!r}.{meant}{listing}{' ' + hint if hint else ''}")


def first_informative_line(error: BaseException | str, *, limit: int = 200) -> str:
    """The line of an error's message that names its cause, cut to `limit` characters."""
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    informative = [line for line in lines if not line[0].isspace() and not _UNINFORMATIVE.match(line)]
    informative = [line.strip() for line in informative or lines]  # indented lines belong to a stack trace or graph
    return informative[0][:limit] if informative else type(error).__name__


def is_out_of_memory(error: BaseException | str) -> bool:
    """Whether an error of a framework, a runtime or the system means that it ran out of memory."""
    return isinstance(error, MemoryError) or bool(_OUT_OF_MEMORY.search(f"{type(error).__name__} {error}"))
