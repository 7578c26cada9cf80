"""What a tree of folders means: class folders, the parts of a split with class folders in each, or neither.

`detect_layout` looks at the tree alone and opens no image. In this order:

1. A folder with nothing but one folder of folders in it is entered ("archive/data/raw-img/...").
2. Its folders with images are looked at for split words (see `split_words.roles_among`).
   Folders of images without labels ("pred", "unlabeled") are left out, and named.
3. All named as parts of a split: each is entered as in 1, and has the class folders. Without class folders, a test
   part is unlabelled and left out; a training or validation part is refused.
4. Some so named and others not: "train" with images directly in it, beside such others, is a class (a vehicle);
   everything else is an error, as a wrong guess would give a wrong result.
5. None so named: they are the classes, unless they look like parts of a split, a copy of the data, or images and masks.

The notes list what is entered, left out or taken as a part of a split; errors state what to do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from resnetlab.data.split_words import describe_words, is_container, parse, roles_among, similar_names
from resnetlab.data.walk import Folder
from resnetlab.errors import ResnetlabError, UsageError

EXPECTED = "Expected a folder for each class, with its images in it"
LABEL_ENDINGS = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".xml", ".xlsx", ".xls", ".mat")
ORDER = ("train", "validation", "test")
REMAINDERS = ("additional", "all", "external", "extra", "gallery", "query", "unseen")  # "train" beside these: a split


@dataclass
class Layout:
    """Where the class folders lie."""

    parts: dict[str | None, Folder] = field(default_factory=dict)  # by subset; None: the data has no split of its own
    left_out: list[Folder] = field(default_factory=list)  # folders that are no data
    entered: list[Folder] = field(default_factory=list)  # folders that were entered: files directly in them are ignored
    notes: list[str] = field(default_factory=list)  # for people

    def class_folders(self, subset: str | None) -> list[Folder]:
        """The class folders of one part, including those without images."""
        return [folder for folder in self.parts[subset].folders if folder not in self.left_out]


def detect_layout(root: Folder) -> Layout:
    """The layout of a tree. Raises UsageError where folders are not understood, ResnetlabError without classes."""
    layout = Layout()
    here = _enter(root, layout, stop_at_parts=True)
    if here is not root:
        layout.notes.append(f"the folders in {here.path} are read")
    groups = [folder for folder in here.folders if folder.num_images]
    roles = roles_among({folder: folder.name for folder in groups})
    for folder in [folder for folder, role in roles.items() if role == "unlabelled"]:
        _leave_out(layout, folder, "unlabelled by its name")
        groups.remove(folder)
        del roles[folder]
    others = [folder for folder in groups if folder not in roles]
    if roles and not others:
        _take_parts(layout, here, roles)
    elif roles and not _is_class_beside(roles, others):
        _refuse_mixture(here, roles, others)
    else:
        for folder in roles:
            layout.notes.append(f"{folder.name!r} is taken as a class, beside {_names(others)}")
        layout.parts[None] = here
    for subset, part in layout.parts.items():
        _leave_out_documents(layout, part)
        _check_class_level(layout, subset)
    _note_loose_images(layout)
    return layout


def _enter(folder: Folder, layout: Layout, *, stop_at_parts: bool = False) -> Folder:
    """The first folder, going down, that contains more than a single folder of folders."""
    while True:
        layout.entered.append(folder)
        inner = [child for child in folder.folders if child.num_images]
        blank = [child for child in folder.folders if not child.num_images and not child.holds_documents_only()]
        if folder.images or len(inner) != 1 or blank:
            return folder
        (child,) = inner
        is_part = stop_at_parts and child in roles_among({child: child.name})
        if is_part or not (_has_folders(child) or is_container(child.name) or parse(child.name).role):
            return folder
        for other in folder.folders:
            if other is not child:
                layout.left_out.append(other)
                layout.notes.append(f"left out: {other.path} (no images in it)")
        folder = child


def _has_folders(folder: Folder) -> bool:
    return any(child.num_images for child in folder.folders)


# ----------------------------------------------------------------------------------------------------- parts


def _take_parts(layout: Layout, here: Folder, roles: dict[Folder, str]) -> None:
    """Set `layout.parts` if all folders with images are named as parts of a split."""
    for role in ORDER:
        named = [folder for folder in roles if roles[folder] == role]
        if len(named) > 1:
            raise UsageError(
                f"{here.path} has several folders for {role}: {_names(named)}. Expected one train folder, at most one "
                "for validation and at most one for test. Merge them, or move away those that are not wanted."
            )
        for folder in named:
            entered = _enter(folder, layout)
            if _has_folders(entered):
                layout.parts[role] = entered
            elif role == "test" and len(roles) > 1:
                layout.entered = [place for place in layout.entered if not place.path.is_relative_to(folder.path)]
                _leave_out(layout, folder, "without class folders, so unlabelled")
            else:
                _refuse_flat(entered, layout)
    if "train" not in layout.parts:
        raise UsageError(
            f"{here.path} holds the folders {_names(roles)}. Expected one train folder, at most one for validation and "
            f"at most one for test, each with class folders. To take all images of one part, give it as DATA: "
            f"{next(iter(roles)).path}."
        )
    empty = [folder for folder in here.folders if not folder.num_images and parse(folder.name).role in ORDER]
    for folder in empty:
        if parse(folder.name).role not in layout.parts and not folder.holds_documents_only():
            raise ResnetlabError(
                f"No images in {folder.path}, which is named as a part of a split. Add its images, or remove it."
            )
    for folder in here.folders:
        if folder not in roles and folder not in layout.left_out:
            layout.left_out.append(folder)
            if not folder.num_images and folder.other_endings():
                layout.notes.append(f"left out: {folder.path} (no images in it)")
    given = ", ".join(f"{role}: {layout.parts[role].path}" for role in ORDER if role in layout.parts)
    layout.notes.append(f"the folders give the split ({given})")


def _is_class_beside(roles: dict[Folder, str], others: Sequence[Folder]) -> bool:
    """Whether the one split word is "train", the vehicle, among folders that are no parts of a split."""
    if len(roles) != 1 or not others:
        return False
    (folder,) = roles
    vehicle = folder.name.casefold() in ("train", "trains") and not _has_folders(folder)
    alone = any(not _has_folders(other) for other in others) or len(others) > 1
    classes = not any(is_container(other.name) or other.name.casefold() in REMAINDERS for other in others)
    return vehicle and alone and classes


def _refuse_mixture(here: Folder, roles: dict[Folder, str], others: Sequence[Folder]) -> NoReturn:
    rest = f", others not ({_names(others)})" if others else ", inside of what is one already"
    raise UsageError(
        f"{here.path} is not understood: it has folders named as parts of a split ({_names(roles)}){rest}. If it is a "
        "split, name its folders train, val and test, with the same class folders in each, and move any others away. "
        f"If {_names(roles)} should be classes, rename them. Words that are understood: {describe_words()}."
    )


def _refuse_flat(folder: Folder, layout: Layout) -> NoReturn:
    """A part or a data set with images and no class folders: their classes are unknown."""
    entered = dict.fromkeys([*layout.entered, folder])
    labels = [name for place in entered for name in place.others if name.lower().endswith(LABEL_ENDINGS)]
    hint = f" Labels in files ({', '.join(labels[:3])}) are not read." if labels else ""
    raise ResnetlabError(
        f"{len(folder.images):,} images lie in {folder.path} itself, in no class folder, so their classes are unknown."
        f"{hint} {EXPECTED}: make class folders, or move these images away."
    )


# --------------------------------------------------------------------------------------------------- classes


def _check_class_level(layout: Layout, subset: str | None) -> None:
    """Raise unless the folders in a part, or in the whole, can be classes."""
    here = layout.parts[subset]
    groups = [folder for folder in layout.class_folders(subset) if folder.num_images]
    if not groups:
        if here.images:
            _refuse_flat(here, layout)
        return  # no images at all, which the source reports
    roles = roles_among({folder: folder.name for folder in groups})
    others = [folder for folder in groups if folder not in roles]
    if roles and not _is_class_beside(roles, others):
        _refuse_mixture(here, roles, others)
    inside = sum(folder.num_images for folder in groups)
    if len(here.images) > inside:
        raise ResnetlabError(
            f"{len(here.images):,} images lie in {here.path} itself, in no class folder, and only {inside:,} in class "
            f"folders. {EXPECTED}: make class folders for them, or move them away."
        )
    containers = [folder for folder in groups if is_container(folder.name)]
    if len(containers) == len(groups):
        if len(groups) == 1:
            _refuse_flat(groups[0], layout)
        raise UsageError(
            f"{here.path} holds {_names(groups)}, which are not class names. {EXPECTED}; masks and annotations "
            "are not read."
        )
    _refuse_split_inside(here, groups)
    _refuse_copies(here, groups)
    _refuse_unknown_split(here, groups)
    if all(len(_inner_names(folder)) > 1 for folder in groups):
        layout.notes.append(f"the folders in {_names(groups)} are not classes: their images are of the class above")


def _refuse_split_inside(here: Folder, groups: Sequence[Folder]) -> None:
    """A split below each class: bottle/train, bottle/test."""
    for folder in groups:
        roles = roles_among({child: child.name for child in folder.folders if child.num_images})
        if len(set(roles.values())) > 1:
            raise UsageError(
                f"{folder.path} holds {_names(roles)}, named as parts of a split, below the folder {folder.name!r} of "
                f"{here.path}. Expected the split above the classes: train/CLASS, val/CLASS, test/CLASS. If "
                f"{folder.name!r} is a data set of its own, give it as DATA."
            )


def _refuse_copies(here: Folder, groups: Sequence[Folder]) -> None:
    """A second copy of the data beside its class folders, as archives often have it."""
    names = {folder.name for folder in groups}
    for folder in groups:
        again = sorted(_inner_names(folder) & (names - {folder.name}))
        if len(again) > 1:
            raise UsageError(
                f"{folder.path} holds {listed(again)}, as {here.path} does itself: a copy of the data, or part of it? "
                f"Give one of the two as DATA ({folder.path}), or move it away."
            )


def _refuse_unknown_split(here: Folder, groups: Sequence[Folder]) -> None:
    """Folders that hold the same folders: parts of a split with unknown names, or classes with like folders in them."""
    inner = {folder: _inner_names(folder) for folder in groups}
    for folder in groups:
        alike = [other for other in groups if _overlap(inner[folder], inner[other])]
        if len(alike) > 1:
            common = sorted(set.intersection(*(inner[other] for other in alike)) or inner[folder])
            raise UsageError(
                f"{here.path} looks like a split that is not understood: {_names(alike)} hold the same folders "
                f"({listed(common)}). If it is one, name its folders train, val and test (of "
                "cross-validation folds one val, all others merged into train). If they are versions of one data set, "
                "give one as DATA. If they are classes, move the images out of the folders in them. "
                f"Words that are understood: {describe_words()}."
            )


def _inner_names(folder: Folder) -> set[str]:
    """The names of the folders in it, or in the one folder that it consists of ("amazon/images/...")."""
    while True:
        inner = [child for child in folder.folders if child.num_images]
        if folder.images or len(inner) != 1:
            return {child.name for child in inner}
        (folder,) = inner


def _overlap(one: set[str], other: set[str]) -> bool:
    common = len(one & other)
    return common > 1 and 2 * common >= min(len(one), len(other))


# ----------------------------------------------------------------------------------------------------- notes


def _leave_out(layout: Layout, folder: Folder, why: str) -> None:
    layout.left_out.append(folder)
    layout.notes.append(f"left out: {folder.path} ({folder.num_images:,} images, {why})")


def _leave_out_documents(layout: Layout, part: Folder) -> None:
    """Folders such as "annotations" beside the class folders."""
    for folder in part.folders:
        if folder.holds_documents_only() and is_container(folder.name):
            layout.left_out.append(folder)
            layout.notes.append(f"left out: {folder.path} (no images in it)")


def _note_loose_images(layout: Layout) -> None:
    for folder in layout.entered:
        if folder.images:
            layout.notes.append(f"left out: {len(folder.images):,} images in {folder.path} itself, in no class folder")


def name_warnings(names: Iterable[str]) -> list[str]:
    """Warnings of class names that are perhaps one class."""
    return [
        f"warning: the classes {listed(group)} differ only in case, spaces or signs: are they one?"
        for group in similar_names(names)
    ]


def _names(folders: Iterable[Folder]) -> str:
    return listed([folder.name for folder in folders])


def listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
