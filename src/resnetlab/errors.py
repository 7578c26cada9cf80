"""Errors that a user can act on: each says what was received, what was expected, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ResnetlabError(Exception):
    """The work could not be done (exit code 1)."""

    exit_code = 1


class UsageError(ResnetlabError):
    """The request itself is wrong: an unknown name, a value out of range (exit code 2)."""

    exit_code = 2


def unknown(kind: str, received: str, known: Iterable[str], *, hint: str = "") -> UsageError:
    """An unknown name of a `kind` (model, recipe, key), with the nearest known ones."""
    known = list(known)
    nearest = difflib.get_close_matches(received, known, n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    listing = "" if nearest or len(known) > 12 else f" Known: {', '.join(known)}."
    return UsageError(f"Unknown {kind} {received!r}.{meant}{listing}{' ' + hint if hint else ''}")
