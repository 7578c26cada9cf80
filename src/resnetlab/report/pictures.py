"""Pictures of a report: predictions with their maps, suspect labels, near-duplicates, a batch, filters."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from resnetlab.data.near_duplicates import NearDuplicate
from resnetlab.data.pack import Pack
from resnetlab.evaluation.label_errors import label_errors
from resnetlab.evaluation.logits import centre_crop
from resnetlab.evaluation.metrics import Evaluation, softmax
from resnetlab.run_folder import RunFolder

SUSPECTS = "Labels that may be wrong"
GALLERY = 12  # images of each kind
BATCH_IMAGES = 16
MAX_SIDE = 224  # of an embedded image, in pixels

Content = dict[str, Any]
Overlay = Callable[[np.ndarray, Sequence[int]], list[Image.Image]]


def data_uri(image: Image.Image) -> str:
    """An image for an HTML page: PNG where it is small, otherwise JPEG of at most MAX_SIDE pixels."""
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    content = io.BytesIO()
    kind = "png" if max(image.size) <= 64 else "jpeg"
    image.save(content, format=kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(content.getvalue()).decode()}"


def galleries(folder: RunFolder, pack: Pack, found: Evaluation, overlay: Overlay | None) -> Iterable[Content]:
    """The most confident mistakes, the least confident correct predictions, and suspect labels."""
    with np.load(folder.path / "predictions.npz") as file:
        logits, labels, indices = file["logits"], file["labels"], file["indices"]
    probabilities = softmax(logits)
    predicted, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong, right = np.flatnonzero(predicted != labels), np.flatnonzero(predicted == labels)
    suspects = label_errors(logits, labels)
    confident = sum(each.confident for each in suspects)
    kinds = (
        ("The most confident mistakes", "", wrong[np.argsort(-confidence[wrong], kind="stable")][:GALLERY]),
        (
            "The least confident correct predictions",
            "",
            right[np.argsort(confidence[right], kind="stable")][:GALLERY],
        ),
        (
            SUSPECTS,
            f"{confident:,} of these {len(labels):,} images have a label that the network, which was not trained on "
            "them, confidently contradicts (Northcutt 2019); below are the images with the least probable labels, and "
            "label_errors.csv in the run folder has all. Of a weak network most are its own mistakes. ",
            np.array([each.index for each in suspects[:GALLERY]], int),
        ),
    )
    size = folder.recipe().test_size
    for title, about, rows in kinds:
        if not len(rows):
            continue
        images = np.ascontiguousarray(centre_crop(pack.images[indices[rows]], size))
        overlays = [None] * len(rows) if overlay is None else overlay(images, predicted[rows].tolist())
        entries = [
            {
                "name": pack.names[indices[row]],
                "image": data_uri(Image.fromarray(image)),
                "map": None if drawn is None else data_uri(drawn),
                "small": size <= 64,
                "alt": found.class_names[labels[row]],
                "map_alt": f"Grad-CAM of {found.class_names[predicted[row]]}",
                "caption": _caption(found.class_names, labels[row], probabilities[row], suspect=title == SUSPECTS),
            }
            for row, image, drawn in zip(rows, images, overlays, strict=True)
        ]
        note = f"{about}Click on an image to enlarge it."
        if overlay is not None:
            note += (
                " Beside each: where the predicted class's evidence is (Grad-CAM of the last stage, yellow is most)."
            )
        yield {"title": title, "note": note, "entries": entries}


def _caption(class_names: Sequence[str], label: int, probabilities: np.ndarray, *, suspect: bool) -> str:
    predicted = int(probabilities.argmax())
    text = f"{class_names[predicted]} {probabilities[predicted]:.1%}"
    if suspect:
        return f"labelled {class_names[label]} ({probabilities[label]:.1%}), predicted {text}"
    return text if predicted == label else f"{text}, is {class_names[label]}"


def near_duplicate_pairs(folder: RunFolder, pack: Pack, near: Sequence[NearDuplicate]) -> Iterable[Content]:
    """The held-out images with a near-duplicate among the training images, and beside each that one."""
    if not near:
        return
    size = folder.recipe().test_size

    def picture(row: int) -> str:
        return data_uri(Image.fromarray(np.ascontiguousarray(centre_crop(pack.images[row], size))))

    entries = [
        {
            "name": pack.names[pair.held_out],
            "image": picture(pair.held_out),
            "map": picture(pair.training),
            "small": size <= 64,
            "alt": pack.class_names[pack.labels[pair.held_out]],
            "map_alt": f"training image {pack.names[pair.training]}",
            "caption": f"{pack.class_names[pack.labels[pair.held_out]]} ({pack.subset[pair.held_out]}), trained on as "
            f"{pack.class_names[pack.labels[pair.training]]}: {pack.names[pair.training]}",
        }
        for pair in near[:GALLERY]
    ]
    note = (
        f"{len(near):,} held-out images are much like a training image, which is beside each"
        f"{', the most similar first' if len(near) > 1 else ''}."
    )
    yield {"title": "Near-duplicates across the split", "note": note, "entries": entries}


def filters(weights: np.ndarray) -> Content:
    """The filters of the first convolution."""
    from resnetlab.evaluation.features import filters_as_images

    count, side = weights.shape[:2]
    return {
        "images": [data_uri(Image.fromarray(image)) for image in filters_as_images(weights)],
        "note": f"{count} filters of {side}x{side} pixels; grey is a weight of 0, and each filter has its own range.",
    }


def batch(folder: RunFolder, pack: Pack) -> Content | None:
    """The first images of training after augmentation."""
    import keras

    from resnetlab.data.augment import Augment
    from resnetlab.training.build import make_stream

    recipe = folder.recipe()
    if not len(pack.indices("train")):
        return None
    stream = make_stream(recipe.changed(batch_size=BATCH_IMAGES, accumulate=1), pack)
    inputs = {name: keras.ops.convert_to_tensor(array) for name, array in stream.batch(0)[0].items()}
    augmented = Augment(stream.augmentation, recipe.training_side(1))(inputs)
    shown = np.clip(keras.ops.convert_to_numpy(augmented), 0, 255).astype(np.uint8)
    side = shown.shape[1]
    return {
        "images": [data_uri(Image.fromarray(image)) for image in shown],
        "small": side <= 64,
        "note": f"Training images, augmented as the recipe says, at {side}x{side} pixels.",
    }
