"""Recognise the subset (train, validation, test, unlabelled) that a folder's name refers to."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

WORDS = {
    "train": ("train", "training", "trn", "trainval"),
    "validation": ("val", "valid", "validation", "validate", "validating", "vld", "dev", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation", "evaluate", "holdout", "heldout"),
    "unlabelled": ("pred", "predict", "prediction", "predicting", "inference", "unlabeled", "unlabelled", "nolabel"),
}
ABBREVIATIONS = {"tr": "train", "va": "validation", "vl": "validation", "te": "test", "ts": "test"}  # whole names only

# Words that name a container of images or labels: a folder named of these alone is no class.
_CONTAINERS = (
    "image images img imgs pic pics picture pictures photo photos jpg jpeg jpegs png jpegimages data dataset datasets "
    "set sets split splits folder folders dir file files sample samples label labels annotation annotations mask masks "
    "segmentation segmentations segmentationclass segmentationobject groundtruth gt"
)
CONTAINERS = frozenset(_CONTAINERS.split())
# Words that may stand beside a split word: "train_images", "new data set 2 (training)".
_QUALIFIERS = (
    "part subset raw orig original originals processed preprocessed resized cropped small full final new seg cls "
    "classification labeled labelled the of for and my x"
)
GENERIC = CONTAINERS | frozenset(_QUALIFIERS.split())

_WORD_OF = {word: role for role, words in WORDS.items() for word in words}
_JOINED = re.compile(  # "trainset", "testdata", "imgtrain"
    rf"(?:data|dataset|set|images?|imgs?)?({'|'.join(sorted(_WORD_OF, key=len, reverse=True))})"
    r"(?:s|sets?|data|datasets?|images?|imgs?|folder|dir|split|part|samples?)?"
)

Key = TypeVar("Key")


@dataclass(frozen=True)
class Parsed:
    """The meaning of a folder's name: "animals_train" has the role "train" and the rest {"animals"}."""

    roles: frozenset[str]
    rest: frozenset[str]  # its other words, without generic ones and numbers
    is_abbreviation: bool = False

    @property
    def role(self) -> str | None:
        """The one role; None where there is none, and where there are several ("train_val")."""
        return next(iter(self.roles)) if len(self.roles) == 1 else None


def parse(name: str) -> Parsed:
    """Find the split words in a folder's name, in any case, delimited by case changes, digits or punctuation."""
    text = unicodedata.normalize("NFKC", name)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d_])(?=\d)|(?<=\d)(?=[^\W\d_])", " ", text).casefold()
    text = re.sub(r"\b(hold|held|no)[\W_]+(out|labels?)\b", r"\1\2", text.replace("_", " "))
    tokens = re.findall(r"\w+", text)
    if len(tokens) == 1 and tokens[0] in ABBREVIATIONS:
        return Parsed(frozenset({ABBREVIATIONS[tokens[0]]}), frozenset(), is_abbreviation=True)
    found = [(token, _JOINED.fullmatch(token)) for token in tokens]
    roles = frozenset(_WORD_OF[match[1]] for _, match in found if match)
    rest = frozenset(token for token, match in found if not match and token not in GENERIC and not token.isdecimal())
    return Parsed(roles, rest)


def is_container(name: str) -> bool:
    """Whether a name has no word that could be a class: "images", "Data_2"."""
    words = re.findall(r"[^\W\d_]+", unicodedata.normalize("NFKC", name).casefold())
    return bool(words) and CONTAINERS.issuperset(words)


def roles_among(names: Mapping[Key, str]) -> dict[Key, str]:
    """The roles of sibling folders that are named as parts of a split.

    A name counts if, beside the split word, it has only generic words ("train_images") or those of a sibling with
    another role ("animals_train", "animals_test"); any, where all siblings have split words with two roles or more.
    So "test_tube" beside "flask", "tr" (Turkish) beside "de", and "valid" beside "invalid" are classes.
    """
    parsed = {key: parse(name) for key, name in names.items()}
    negated = {"invalid", "nonvalid", "notvalid", "unvalid"}
    bare = {re.sub(r"[\W_]+", "", name.casefold()) for name in names.values()}
    with_role = {
        key: found for key, found in parsed.items() if found.role and not (negated & bare and _is_valid(found))
    }
    if len(with_role) == len(parsed) and len({found.role for found in with_role.values()}) > 1:
        return {key: found.role or "" for key, found in with_role.items()}

    def is_split_name(found: Parsed) -> bool:
        if found.is_abbreviation:
            return False
        shared = (other for other in with_role.values() if other.role != found.role and other.rest == found.rest)
        return not found.rest or any(shared)

    return {key: found.role or "" for key, found in with_role.items() if is_split_name(found)}


def _is_valid(found: Parsed) -> bool:
    return found.role == "validation" and not found.rest


def describe_words() -> str:
    """The recognised split words, for error messages."""
    return "; ".join(f"{', '.join(words[:4])} ({role})" for role, words in WORDS.items())


def similar_names(names: Iterable[str]) -> list[list[str]]:
    """Groups of names that differ only in case, spaces and separators: perhaps one class spelled in two ways."""
    groups: dict[str, list[str]] = {}
    for name in names:
        key = re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()
        groups.setdefault(key or name, []).append(name)
    return [group for group in groups.values() if len(group) > 1]
