"""The data of a recipe and of a run: packed, split, and checked against what the run was trained on."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from resnetlab.data.audit import ignored_text
from resnetlab.data.layout import listed
from resnetlab.data.pack import Pack, prepare_pack
from resnetlab.data.sources import IN_MEMORY, Source, resolve
from resnetlab.data.split import UNUSED
from resnetlab.errors import ResnetlabError, UsageError
from resnetlab.progress import Progress
from resnetlab.recipes import Recipe
from resnetlab.run_folder import DIGITS, RunFolder, as_written


def open_data(
    data: str,
    recipe: Recipe,
    *,
    progress: Progress,
    inherited: Mapping[str, str] | None = None,
    allow_losses: bool = False,
    known: bool = False,
    download: bool = True,
) -> tuple[Source, Pack]:
    """The packed images of a known data set or a folder, made now or taken from the cache.

    Args:
        inherited: as in `split`.
        allow_losses: a class may lose most of its images to the audit.
        known, download: as in `resolve`.
    """
    source = resolve(data, known=known, download=download, progress=progress.count)
    for note in source.notes:
        progress.info(note)
    if source.ignored:
        progress.info(f"ignored: {ignored_text(source.ignored_endings)}")
    pack = prepare_pack(
        source,
        recipe,
        inherited=inherited,
        allow_losses=allow_losses,
        progress=lambda done, total: progress.count("decoding", done, total),
        waiting=lambda: progress.info("waiting for another process, which is packing the same images"),
    )
    for name, loss in pack.audit["losses"].items():
        progress.warning(f"the class {name!r}: {loss}")
    see = "" if source.packed is not None else f": see `resnetlab audit {shlex.quote(data)}`"
    if unusable := len(pack.audit["set_aside"]):
        progress.info(f"{unusable} of {pack.audit['found']} images are set aside{see}")
    if suspicious := len(pack.audit["suspicious"]):
        progress.info(f"{suspicious} images are nearly blank, but are used{see}")
    return source, pack


def describe_split(source: Source, recipe: Recipe, pack: Pack | None = None, *, inherited: bool = False) -> str:
    """Where the validation and the test images come from, and how to train on them too, in one or two lines.

    Args:
        pack: the images as they were split; without it, the fractions of the recipe are stated.
        inherited: images keep the subset that they had in the run that the weights come from.
    """
    given = {sample.subset for sample in source.samples} - {None}
    fractions = {"validation": recipe.validation, "test": recipe.test}
    own = [f"the data's own {name} part" for name in fractions if name in given]
    taken = [name for name, fraction in fractions.items() if fraction and name not in given]
    none = [f"no {name} images" for name, fraction in fractions.items() if not fraction and name not in given]
    parts = [*own, *none]
    if taken:
        amounts = {
            name: f"about {fractions[name]:.0%}" if pack is None else f"{len(pack.indices(name)):,}" for name in taken
        }
        listed = " and ".join(f"{amount} for {name}" for name, amount in amounts.items())
        parts.append(f"{listed}, taken out of the {'training part' if given else 'images'}")
    if inherited:
        parts.append("as in the run that the weights come from")
    keep = " ".join(f"--set {name}=0" for name in taken)
    if "validation" in taken and recipe.early_stopping:
        keep += " --set early_stopping=0"
    return "; ".join(parts) + (f"\n(to train on these too: `{keep}`)" if taken else "")


def open_run_data(
    folder: RunFolder,
    data: str | None = None,
    *,
    progress: Progress,
    download: bool = True,
    allow_changes: bool = False,
) -> tuple[Source, Pack]:
    """The data that a run was trained on, at `data` if it was moved.

    Args:
        download: as in `resolve`.
        allow_changes: the images may have changed since: those that the run knows keep their subset, others are new,
            and the run's split is replaced.

    Raises:
        UsageError: the weights were imported, so the run has no data.
        ResnetlabError: the data is not there, or its images are not those of the run's split.
    """
    info, named = folder.info(), shlex.quote(str(folder.path))
    if data is None and info.data is None:
        raise UsageError(
            f"The weights of {folder.path} were imported, so it has no data of its own. Name some: `resnetlab evaluate "
            f"{named} DATA`; to train from its weights: `resnetlab train DATA --weights {named}`."
        )
    if data is None and Path(str(info.data)).is_absolute() and not Path(str(info.data)).is_dir():
        raise ResnetlabError(
            f"The data of {folder.path} is no longer at {info.data}. Name where it is now as DATA: `resnetlab train "
            f"DATA --resume {named}`, `resnetlab evaluate {named} DATA`."
        )
    source, pack = open_data(
        data or str(info.data),
        folder.recipe(),
        progress=progress,
        inherited=folder.ancestors(),
        allow_losses=info.allow_losses,
        known=data is None,
        download=download,
    )
    _require_classes(folder, source)
    rows = split_rows(pack)
    before, now = folder.split(), {digest: subset for _, _, subset, digest in rows}
    written = {name: as_written(name) for name in pack.class_names}
    classes, classes_now = folder.classes_of_images(), {digest: written[name] for _, name, _, digest in rows}
    relabelled = sum(classes.get(digest, name) != name for digest, name in classes_now.items())
    if (before != now or relabelled) and allow_changes:
        return source, _split_anew(folder, source, progress)
    if relabelled:
        raise ResnetlabError(
            f"{relabelled:,} {'image is' if relabelled == 1 else 'images are'} in the folder of another class of "
            f"{source.location} than when {folder.path} was trained. Move them back, or train on them from this run's "
            f"weights: `resnetlab train DATA --weights {named}`."
        )
    if before != now:
        if unusable := _set_aside_since(folder, pack):
            raise ResnetlabError(
                f"{len(unusable):,} images that {folder.path} was trained on cannot be used here: {listed(unusable)}. "
                "Install what is missing, or set $RESNETLAB_MAX_PIXELS as it was."
            )
        raise ResnetlabError(
            f"The images of {source.location} are not those that {folder.path} was trained on: files were added, "
            f"removed or changed ({_difference(before, now)}). Restore them, train on them from this run's weights: "
            f"`resnetlab train DATA --weights {named}`, or evaluate on them as other data: `resnetlab evaluate {named} "
            "DATA`."
        )
    return source, pack


def _require_classes(folder: RunFolder, source: Source) -> None:
    """Raise ResnetlabError where the classes are no longer those of the run's logits."""
    expected = folder.info().class_names
    if source.class_names == expected:
        return
    gone, new = (sorted(set(a) - set(b)) for a, b in ((expected, source.class_names), (source.class_names, expected)))
    raise ResnetlabError(
        f"The classes of {source.location} are not those that {folder.path} was trained on: "
        f"{', '.join(gone) or 'none'} gone, {', '.join(new) or 'none'} new. Restore the folders, or train "
        f"on them from this run's weights: `resnetlab train DATA --weights {shlex.quote(str(folder.path))}`."
    )


def _set_aside_since(folder: RunFolder, pack: Pack) -> list[str]:
    """The images of the run that are set aside now, where they are the only ones to be missing."""
    names = {as_written(row["name"]): row["problem"] for row in pack.audit["set_aside"]}
    known = {as_written(name) for name in pack.names}
    gone = [name for name in folder.image_names() if name not in known]
    return [f"{name} ({names[name]})" for name in gone] if all(name in names for name in gone) else []


def _difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """How the images of two splits differ, in words."""
    added, removed = len(now.keys() - before.keys()), len(before.keys() - now.keys())
    moved = sum(now[digest] != subset for digest, subset in before.items() if digest in now)
    return f"{added:,} new, {removed:,} gone, {moved:,} in another subset"


def _split_anew(folder: RunFolder, source: Source, progress: Progress) -> Pack:
    """The pack of data that has changed, where images that the run knows keep their subset; the run's split is it."""
    before = folder.split()
    pack = prepare_pack(
        source,
        folder.recipe(),
        inherited=folder.used_images(),
        allow_losses=folder.info().allow_losses,
        progress=lambda done, total: progress.count("decoding", done, total),
    )
    rows = split_rows(pack)
    progress.warning(
        f"The images have changed since the run began ({_difference(before, {row[3]: row[2] for row in rows})}): it is "
        "no longer what a single run would give."
    )
    folder.forget_evaluation()
    folder.write_ancestors(folder)
    folder.write_split(rows)
    folder.write_json("audit.json", pack.audit)
    folder.update(pack=pack.key)
    return pack


def split_rows(pack: Pack) -> list[tuple[str, str, str, str]]:
    """Rows of (name, class name, subset, content hash), as a run folder keeps them."""
    return [
        (name, pack.class_names[label], str(subset), digest[:DIGITS])
        for name, label, subset, digest in zip(pack.names, pack.labels, pack.subset, pack.hashes, strict=True)
    ]


def inherited_subsets(used: Mapping[str, str], pack: Pack) -> list[str | None]:
    """For each image of `pack`, its subset among the `used_images` of a run; None for a new one."""
    return [used.get(digest[:DIGITS]) for digest in pack.hashes]


def check_inheritance(origin: RunFolder, used: Mapping[str, str], recipe: Recipe, pack: Pack) -> list[str]:
    """Notes on how the initial weights, given the `used_images` of their run, affect the split.

    Raises:
        ResnetlabError: the weights were trained on all images that would be in the test set.
    """
    notes = []
    if origin.has_unknown_origin():
        notes.append(
            "it is not known what the imported weights were trained on: it may include images that are held out here"
        )
    before = inherited_subsets(used, pack)
    if known := sum(subset is not None for subset in before):
        kept = sum(was == now for was, now in zip(before, pack.subset, strict=True))
        moved = sum(
            was in ("validation", "test") and now == "train" for was, now in zip(before, pack.subset, strict=True)
        )
        notes.append(
            f"{known:,} images were in the runs that the weights come from, {kept:,} keep their subset; others are new"
        )
        if moved:
            notes.append(f"{moved:,} images that were held out there are trained on here, as the recipe holds none out")
    if unused := len(pack.indices(UNUSED)):
        notes.append(
            f"{unused:,} held-out images of the data are left out: the weights were trained on, or selected by, them"
        )
    if recipe.test and known and not len(pack.indices("test")):
        raise ResnetlabError(
            f"No image is left to test on: the weights of {origin.path} were trained on, or selected by, all "
            f"candidates ({before.count('train'):,} of {len(before):,} images trained on). Add images, use other "
            "initial weights, or do without a test with --set test=0."
        )
    return notes


def select_unseen(folder: RunFolder, source: Source, pack: Pack) -> tuple[NDArray[np.int64], list[str]]:
    """Indices of the images of other data that neither the run nor its origins were trained on, and notes.

    If the data has a test part of its own, only that is used, else its validation part; images that the run held out to
    test on are used in any case.

    Raises:
        ResnetlabError: none is left.
    """
    notes = []
    before = np.array([subset or "" for subset in inherited_subsets(folder.used_images(), pack)])
    kept = np.flatnonzero(before != "train")
    given = {sample.subset for sample in source.samples}
    of_part = ""
    if (part := next((part for part in ("test", "validation") if part in given), None)) is not None:
        held_out = np.intersect1d(kept, np.union1d(pack.indices(part), np.flatnonzero(before == "test")))
        if len(held_out):
            kept, of_part = held_out, f", or not of the data's {part} part"
    if left_out := len(pack.labels) - len(kept):
        notes.append(f"{left_out} of {len(pack.labels)} images left out: trained on{of_part}")
    if not len(kept):
        raise ResnetlabError(
            f"The run was trained on every image of {source.location}: nothing is left to evaluate on."
        )
    if chose := int((before[kept] == "validation").sum()):
        notes.append(f"{chose} of these {len(kept)} images are validation images: the best epoch was chosen by them")
    trained_on = folder.info().source
    if trained_on in IN_MEMORY and not source.in_memory and not (before != "").any():
        notes.append(f"the run was trained on {trained_on} as arrays: image files of the same data are not recognised")
    if folder.has_unknown_origin():
        notes.append("it is not known what the imported weights were trained on: it may include these images")
    return kept, notes
