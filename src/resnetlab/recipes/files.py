"""Recipes from files, and settings from the command line."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from resnetlab.errors import UsageError, unknown_name
from resnetlab.recipes.named import BASE, RECIPES
from resnetlab.recipes.schema import Recipe
from resnetlab.untrusted import parse_json, parse_toml

MAX_CHARACTERS = 16_384  # of a recipe file


def parse_settings(settings: Iterable[str]) -> dict[str, Any]:
    """The values of "key=value" texts; values are JSON, or plain text."""
    changes: dict[str, Any] = {}
    for setting in settings:
        key, separator, text = setting.partition("=")
        if not separator:
            raise UsageError(f"Received --set {setting!r}, expected key=value, such as --set epochs=5.")
        try:
            changes[key.strip()] = parse_json(text)
        except ValueError:
            changes[key.strip()] = text.strip()
    return changes


def _parse(text: str, *, toml: bool) -> Any:
    """The content of a recipe file. Raises ValueError if it is not valid."""
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"it has {len(text):,} characters, expected at most {MAX_CHARACTERS:,}")
    return parse_toml(text) if toml else parse_json(text)


def stated_keys(name_or_file: str) -> set[str]:
    """The keys that a recipe file states, and the files that it is based on."""
    path = Path(name_or_file)
    if path.suffix not in (".toml", ".json"):
        return set()
    fields = _parse(path.read_text("utf-8"), toml=path.suffix == ".toml")
    base = str(fields.pop("base", BASE.name))
    return set(fields) | stated_keys(str(path.parent / base) if base.endswith((".toml", ".json")) else base)


def recipe(name_or_file: str, *, _above: tuple[Path, ...] = ()) -> Recipe:
    """A named recipe, or one from a .toml or .json file that may name its `base`: a recipe, or a file beside it.

    Raises:
        UsageError: an unknown name, a file that cannot be read, an unknown key, a value out of range.
    """
    path = Path(name_or_file)
    if path.suffix not in (".toml", ".json"):
        if name_or_file not in RECIPES:
            raise unknown_name("recipe", name_or_file, RECIPES, hint="A file must end in .toml or .json.")
        return RECIPES[name_or_file]
    try:
        text = path.read_text(encoding="utf-8")
        fields = _parse(text, toml=path.suffix == ".toml")
    except OSError as error:
        raise UsageError(f"Recipe file {path}: {error.strerror}.") from None
    except ValueError as error:
        raise UsageError(f"Recipe file {path}: not valid {path.suffix[1:].upper()}: {error}.") from None
    if not isinstance(fields, dict):
        raise UsageError(f"Recipe file {path}: received a {type(fields).__name__}, expected a table of keys.")
    base = fields.pop("base", BASE.name)
    if not isinstance(base, str):
        raise UsageError(f"Recipe file {path}: base: received {base!r}, expected the name of a recipe or a file.")
    if path.resolve() in _above:
        raise UsageError(f"Recipe file {path}: its base leads back to itself. Expected a base such as {BASE.name!r}.")
    if base.endswith((".toml", ".json")):
        base = str(path.parent / base)
    parent = BASE if base == BASE.name else recipe(base, _above=(*_above, path.resolve()))
    return parent.changed(**({"name": path.stem, "description": ""} | fields))
