"""The model card of shared weights: README.md, whose head the Hugging Face hub reads."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from resnetlab.errors import ResnetlabError
from resnetlab.models.shapes import summarize
from resnetlab.models.variants import architecture
from resnetlab.run_folder import RunFolder

LOADING = {
    "resnetlab": """import resnetlab as rl

run = rl.from_pretrained("FOLDER")          # or the name of the repository on the hub
run.predict("photograph.jpg")[0].label""",
    "timm": """import timm

model = timm.create_model("{theirs}", num_classes={classes}, checkpoint_path="FOLDER/model.safetensors")
# from the hub: timm.create_model("hf_hub:USER/NAME", pretrained=True)""",
    "torchvision": """import torchvision
from safetensors.torch import load_file

model = torchvision.models.{theirs}(num_classes={classes})
model.load_state_dict(load_file("FOLDER/model.safetensors"))
# Input: RGB in [0, 1], normalised by mean and std of config.json""",
    "transformers": """from transformers import AutoImageProcessor, AutoModelForImageClassification

processor = AutoImageProcessor.from_pretrained("FOLDER")
model = AutoModelForImageClassification.from_pretrained("FOLDER")""",
}


def model_card(run: RunFolder, *, names: str, theirs: str, license: str | None) -> str:
    """The text of README.md; it states only what the run records."""
    info, recipe, found = run.info(), run.recipe(), _evaluation(run)
    classes = info.class_names
    summary = summarize(architecture(recipe.model), recipe.test_size, len(classes))
    parts = [_head(run, names, license, found)]
    parts.append(f"# {recipe.model}, {len(classes)} classes\n")
    parts.append(
        f"An image classifier: {recipe.model} ({summary.parameters:,} parameters, {summary.multiply_adds / 1e9:.3g} "
        f"billion multiply-adds an image), float32, RGB images of {recipe.test_size}x{recipe.test_size} pixels. "
        f"Weights in the names of {names}.\n"
    )
    parts.append(f"## Use\n\n```python\n{LOADING[names].format(theirs=theirs, classes=len(classes))}\n```\n")
    parts.append(f"Classes, in the order of the logits: {_listed(classes)}.\n")
    parts.append(f"## Results\n\n{_results(found)}\n")
    parts.append(f"## Training\n\n{_training(run)}\n")
    parts.append(
        "## Intended use and limits\n\nTo classify images like those it was trained on, into the classes above; of any "
        "other image it names one of them too. Results on images of another origin are not known. Not for decisions "
        "about people without a review of its own.\n"
    )
    parts.append(f"## Licence\n\n{license or 'Not stated. Ask whoever shared these weights.'}\n")
    return "\n".join(parts)


def _head(run: RunFolder, names: str, license: str | None, found: dict[str, Any]) -> str:
    """YAML; JSON is YAML too, which spares quoting."""
    library = {"torchvision": "pytorch", "resnetlab": "keras"}.get(names, names)
    head: dict[str, Any] = {"library_name": library, "pipeline_tag": "image-classification"}
    head |= {"tags": ["image-classification", "resnet", "resnetlab"]}
    if found:
        head["model-index"] = [
            {
                "name": run.info().model,
                "results": [
                    {
                        "task": {"type": "image-classification"},
                        "dataset": {"name": str(run.info().source), "type": "image-folder", "split": found["subset"]},
                        "metrics": [{"type": "accuracy", "value": round(found["top1"], 4)}],
                    }
                ],
            }
        ]
    lines = [f"license: {license}"] if license else []
    lines += [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in head.items()]
    return "\n".join(["---", *lines, "---\n"])


def _evaluation(run: RunFolder) -> dict[str, Any]:
    try:
        found = run.read_json("evaluation.json")
        needed = ("top1", "top1_interval", "n", "subset", "loss", "calibration_error")
        return found if all(found.get(key) is not None for key in needed) else {}
    except ResnetlabError:
        return {}


def _results(found: dict[str, Any]) -> str:
    if not found:
        return "Not evaluated."
    low, high = found["top1_interval"]
    chosen = ", by which the best epoch was chosen" if found["subset"] == "validation" else ""
    return (
        f"Top-1 accuracy {found['top1']:.1%} (95 % interval {low:.1%} to {high:.1%}) on {found['n']:,} "
        f"{found['subset']} images of the same data{chosen}; loss {found['loss']:.3f}, calibration error "
        f"{found['calibration_error']:.1%}."
    )


def _training(run: RunFolder) -> str:
    info, recipe = run.info(), run.recipe()
    if info.status == "imported":
        return f"Imported from {info.source}; what it was trained on is not recorded."
    counts = Counter(run.split().values())
    images = ", ".join(f"{counts[subset]:,} {subset}" for subset in ("train", "validation", "test") if counts[subset])
    initial = "from random weights" if info.weights is None else "from the weights of another run"
    settings = json.dumps(recipe.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False, indent=1)
    return (
        f"On {info.source} ({images} images), {initial}, {info.epoch} epochs, best epoch {info.best_epoch}, by recipe "
        f"{recipe.name}:\n\n```json\n{settings}\n```"
    )


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(" ".join(name.split()) for name in names[:20])
    return shown if len(names) <= 20 else f"{shown}, ... ({len(names)} in config.json)"
