"""Recipes: what is named is valid, what is wrong is told with its key, and the papers' numbers are the papers'."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from resnetlab.data.augmentation import Augmentation
from resnetlab.data.stream import Stream
from resnetlab.errors import UsageError
from resnetlab.jobs import choose_recipe
from resnetlab.models.variants import architecture
from resnetlab.progress import LogProgress
from resnetlab.recipes import BASE, RECIPES, SYNONYMS, Recipe, parse_settings, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_named_recipe_is_valid_and_its_model_exists(name: str) -> None:
    found = recipe(name)
    assert found.name == name
    assert found.description
    assert architecture(found.model).name == found.model
    assert Recipe(**json.loads(found.model_dump_json())) == found  # as a run folder keeps it


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("animal", "Unknown recipe 'animal'. Did you mean 'animals'"),
        ("cifar-quik", "'cifar-quick'"),
        (
            "zzz",
            "Known: quick, animals, photos, cifar, cifar-quick, cifar-90, cifar-94, cifar-96, cifar-small-data, "
            "cifar-paper-quick, finetune, imagenet, strikes-back-a3.",
        ),
        ("zzz", "A file must end in .toml or .json."),
    ],
)
def test_an_unknown_recipe_is_told_with_the_nearest(name: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        recipe(name)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [("epohcs=3", "'epochs'"), ("learning-rate=0.1", "'learning_rate'"), ("batchsize=2", "'batch_size'")],
)
def test_an_unknown_key_is_told_with_the_nearest(setting: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=f"Unknown recipe key .*Did you mean .*{nearest}"):
        BASE.changed(**parse_settings([setting]))


@pytest.mark.parametrize("key", ["self", "cls", "changes", "model_config", "", "__class__"])
def test_a_key_that_python_knows_is_unknown_all_the_same(key: str) -> None:
    with pytest.raises(UsageError, match="Unknown recipe key"):
        BASE.changed(**parse_settings([f"{key}=1"]))


@pytest.mark.parametrize(
    ("setting", "key", "received", "expected"),
    [
        ("epochs=0", "epochs", "0", "greater than or equal to 1"),
        ("epochs=1.5", "epochs", "1.5", "integer"),
        ("epochs=many", "epochs", "'many'", "integer"),
        ("batch_size=-4", "batch_size", "-4", "greater than or equal to 1"),
        ("learning_rate=0", "learning_rate", "0", "greater than 0"),
        ("learning_rate=NaN", "learning_rate", "nan", "finite"),
        ("learning_rate=Infinity", "learning_rate", "inf", "finite"),
        ("warmup=Infinity", "warmup", "inf", "finite"),
        ("image_size=4", "image_size", "4", "greater than or equal to 8"),
        ("image_size=100000", "image_size", "100000", "less than or equal to 4096"),
        ("seed=-1", "seed", "-1", "greater than or equal to 0"),
        ("validation=1", "validation", "1", "less than 1"),
        ("ema=1", "ema", "1", "less than 1"),
        ("layer_decay=0", "layer_decay", "0", "greater than 0"),
        ("layer_decay=1.1", "layer_decay", "1.1", "less than or equal to 1"),
        ("frozen_epochs=-1", "frozen_epochs", "-1", "greater than or equal to 0"),
        ("frozen_stages=-1", "frozen_stages", "-1", "greater than or equal to 0"),
        ("optimizer=adam", "optimizer", "'adam'", "'sgd', 'adamw', 'lamb' or 'muon'"),
        ("precision=float64", "precision", "'float64'", "'auto', 'float32', 'bfloat16' or 'float16'"),
        ("flip=perhaps", "flip", "'perhaps'", "True, False or 'alternating'"),
        ('milestones=[1,"x"]', "milestones.1", "'x'", "number"),
    ],
)
def test_a_value_out_of_range_names_key_received_and_expected(
    setting: str, key: str, received: str, expected: str
) -> None:
    with pytest.raises(UsageError) as error:
        BASE.changed(**parse_settings([setting]))
    told = str(error.value)
    assert f"{key}: received {received}, expected: " in told
    assert expected in told.partition("expected: ")[2]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["validation=0.6", "test=0.4"], "validation=0.6 and test=0.4 leave nothing to train on"),
        (["early_stopping=3", "validation=0"], "set validation above 0"),
        (
            ["progressive=[[300,0.5]]"],
            "increasing sides of at least 8 and below image_size=224, and increasing fractions",
        ),
        (["progressive=[[96,0.5],[64,0.5]]"], "increasing sides of at least 8"),
        (["crop_border=reflect", "crop_padding=224"], "less than the image_size=224, as an image is reflected once"),
        (["progressive=20"], "pairs of a side and a fraction, like"),
        (["progressive=[20,0.5]"], "pairs of a side and a fraction, like"),
        (["milestones=[30]"], 'milestones and schedule="steps" belong together'),
        (["schedule=steps"], 'milestones and schedule="steps" belong together'),
        (["epochs=2", "frozen_epochs=3"], "frozen_epochs=3 exceeds epochs=2"),
        (["frozen_stages=1"], "set those above 0"),
        (["mixup=0.2", "cutmix=1", "batch_size=1"], "batch_size of at least 2"),
        (["mixup=0.2", "batch_size=1"], "batch_size of at least 2"),
        (["cutmix=1", "batch_size=1"], "batch_size of at least 2"),
    ],
)
def test_values_that_contradict_each_other(settings: list[str], told: str) -> None:
    with pytest.raises(UsageError) as error:
        BASE.changed(**parse_settings(settings))
    assert told in str(error.value)


def test_settings_are_json_or_text() -> None:
    changed = BASE.changed(
        **parse_settings(
            [
                "epochs=5",
                "learning_rate = 1e-3",
                "flip=false",
                "schedule=steps",
                "milestones=[2, 3.5]",
                'crop="pad"',
                "seed=7",
            ]
        )
    )
    assert (changed.epochs, changed.learning_rate, changed.flip) == (5, 1e-3, False)
    assert (changed.schedule, changed.milestones, changed.crop, changed.seed) == ("steps", (2.0, 3.5), "pad", 7)
    assert BASE.changed(**parse_settings(["description=a=b c"])).description == "a=b c"
    assert BASE.changed(**parse_settings(["epochs=1", "epochs=2"])).epochs == 2
    assert BASE.changed(**parse_settings([])) == BASE


@pytest.mark.parametrize("setting", ["epochs", "epochs 5", ""])
def test_a_setting_without_a_value(setting: str) -> None:
    with pytest.raises(UsageError, match="expected key=value, such as --set epochs=5"):
        BASE.changed(**parse_settings([setting]))


def test_a_file_states_what_differs_from_its_base(tmp_path: Path) -> None:
    toml = tmp_path / "mine.toml"
    toml.write_text('base = "animals"\nepochs = 3\nmodel = "resnet18"\n')
    assert recipe(str(toml)) == RECIPES["animals"].changed(name="mine", description="", epochs=3, model="resnet18")
    other = tmp_path / "yours.json"
    other.write_text(json.dumps({"base": str(toml), "seed": 4, "name": "theirs"}))  # a file on a file
    assert recipe(str(other)) == recipe(str(toml)).changed(name="theirs", seed=4)
    alone = tmp_path / "alone.json"
    alone.write_text("{}")
    assert recipe(str(alone)) == BASE.changed(name="alone")


def test_the_recipe_of_a_run_folder_is_a_recipe_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.json"
    file.write_text(RECIPES["cifar"].model_dump_json())
    assert recipe(str(file)) == RECIPES["cifar"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.toml", "epochs = ", "not valid TOML"),
        ("a.json", "{epochs: 3}", "not valid JSON"),
        ("a.json", "[1, 2]", "received a list, expected a table of keys"),
        ("a.json", '"quick"', "received a str, expected a table of keys"),
        ("a.toml", "epoch = 3", "'epochs'"),
        ("a.toml", "epochs = 0", "epochs: received 0"),
        ("a.toml", 'base = "animal"', "'animals'"),
        ("a.json", '{"base": 3}', "base"),
        ("a.json", '{"base": ["quick"]}', "base"),
    ],
)
def test_a_broken_file_is_told(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UsageError) as error:
        recipe(str(tmp_path / name))
    assert told in str(error.value)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        recipe(str(tmp_path / "none.toml"))
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UsageError, match="Is a directory"):
        recipe(str(tmp_path / "folder.json"))
    (tmp_path / "latin.toml").write_bytes(b'description = "\xe9t\xe9"')
    with pytest.raises(UsageError, match="not valid TOML"):
        recipe(str(tmp_path / "latin.toml"))


def test_a_file_that_is_its_own_base(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"base": str(tmp_path / "b.json")}))
    (tmp_path / "b.json").write_text(json.dumps({"base": str(tmp_path / "a.json")}))
    with pytest.raises(UsageError, match="base"):
        recipe(str(tmp_path / "a.json"))


def test_a_base_beside_the_file_is_found_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "common.toml").write_text("epochs = 7")
    (tmp_path / "mine.toml").write_text('base = "common.toml"\nseed = 1')
    assert recipe(str(tmp_path / "mine.toml")).epochs == 7


def test_cifar_is_the_papers() -> None:
    """He et al. 2015, section 4.2: 64k updates of batch 128, rate 0.1 divided by 10 at 32k and 48k."""
    cifar = RECIPES["cifar"]
    stream = Stream(
        images=np.zeros((1, 32, 32, 3), np.uint8),
        labels=np.zeros(50_000, int),
        indices=np.arange(50_000),
        batch_size=cifar.batch_size,
        num_classes=10,
        augmentation=Augmentation(source_size=32, size=32, flip=False),
    )
    epoch = stream.steps_per_epoch
    assert epoch == 391
    assert abs(cifar.epochs * epoch - 64_000) <= epoch
    assert [
        abs(milestone * epoch - updates) <= epoch
        for milestone, updates in zip(cifar.milestones, (32e3, 48e3), strict=True)
    ] == [True] * 2
    assert (cifar.batch_size, cifar.learning_rate, cifar.momentum, cifar.weight_decay) == (128, 0.1, 0.9, 1e-4)
    assert (cifar.optimizer, cifar.nesterov, cifar.schedule) == ("sgd", False, "steps")
    assert (cifar.crop, cifar.crop_padding, cifar.flip, cifar.pack_size) == ("pad", 4, True, 32)


def test_animals_is_the_original_job() -> None:
    animals = RECIPES["animals"]
    assert (animals.model, animals.image_size, animals.batch_size) == ("resnet50", 64, 32)
    assert (animals.validation, animals.epochs) == (0.2, 40)
    assert animals.early_stopping > 0


def test_imagenet_is_the_papers() -> None:
    imagenet = RECIPES["imagenet"]
    assert (imagenet.image_size, imagenet.batch_size, imagenet.pack_size) == (224, 256, 256)
    assert (imagenet.learning_rate, imagenet.momentum, imagenet.weight_decay) == (0.1, 0.9, 1e-4)
    assert (imagenet.epochs, imagenet.warmup, imagenet.milestones) == (90, 5, (30, 60, 80))


def test_strikes_back_a3_is_the_papers() -> None:
    """Wightman et al. 2021, table 2."""
    a3 = RECIPES["strikes-back-a3"]
    assert (a3.image_size, a3.epochs, a3.batch_size, a3.optimizer) == (160, 100, 2048, "lamb")
    assert (a3.learning_rate, a3.weight_decay, a3.warmup, a3.schedule) == (8e-3, 0.02, 5, "cosine")
    assert (a3.mixup, a3.cutmix, a3.label_smoothing, a3.loss) == (0.1, 1.0, 0.0, "binary-cross-entropy")
    assert (a3.target_threshold, a3.gradient_clip, a3.rand_augment) == (0.2, 1.0, 6.0)
    assert (a3.test_size, a3.pack_size, a3.interpolation) == (224, 236, "bicubic")
    assert (a3.stochastic_depth, a3.color_jitter, a3.erase, a3.ema, a3.flip) == (0.0, 0.0, 0.0, 0.0, True)
    assert (a3.crop, a3.crop_scale, a3.whole_images) == ("resized", 0.08, True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"crop": "pad", "eval_size": 256}, "eval_size=256"),
        ({"crop": "resized", "eval_size": 160}, "eval_size=160 is below image_size=224"),
        ({"crop": "pad", "whole_images": True}, "whole_images"),
        ({"target_threshold": 0.2}, "binary-cross-entropy"),
        ({"target_threshold": 0.2, "loss": "binary-cross-entropy", "label_smoothing": 0.1}, "label_smoothing"),
        ({"gradient_clip": 1.0}, "sgd"),
        ({"rand_augment": 11}, "rand_augment: received 11"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        BASE.changed(**changes)


@pytest.mark.parametrize(
    ("changes", "needed"),
    [
        ({"crop_padding": 2}, "crop=pad"),
        ({"crop_border": "reflect"}, "crop=pad"),
        ({"crop_scale": 0.35}, "crop=resized"),
        ({"crop_pct": 0.9}, "crop=resized"),
        ({"adam_learning_rate": 0.01}, "optimizer=muon"),
    ],
)
def test_a_setting_without_effect_is_refused_and_answered_with_what_it_needs(
    changes: dict[str, Any], needed: str
) -> None:
    with pytest.raises(UsageError, match=f"{next(iter(changes))}=.* has no effect.*{needed}"):
        BASE.changed(**changes)
    governing, value = needed.split("=")
    BASE.changed(**{governing: value}).changed(**changes)
    BASE.changed(**changes, **{governing: value})
    other = "none" if governing == "crop" else "adamw"
    with pytest.raises(UsageError, match=f"{next(iter(changes))}=.* has no effect.*{needed}"):
        BASE.changed(**changes, **{governing: other})  # though what governs it is stated too


def test_a_stored_recipe_of_fewer_fields_may_have_settings_without_effect() -> None:
    mixed = BASE.changed(crop="pad", crop_padding=8).changed(crop="resized")
    fields = mixed.model_dump(mode="json")
    del fields["erase"]
    assert Recipe.stored(fields) == mixed
    with pytest.raises(UsageError, match="crop_paddin"):
        Recipe.stored({"crop_paddin": 8})


def test_every_key_of_a_recipe_may_be_repeated_whether_it_has_an_effect_or_not() -> None:
    mixed = RECIPES["cifar-94"].changed(optimizer="sgd", crop="none")
    assert BASE.changed(**mixed.model_dump()) == mixed
    assert mixed.changed(crop_padding=mixed.crop_padding) == mixed


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_stored_images_have_a_margin_only_where_it_is_cut(crop: str) -> None:
    assert BASE.changed(crop=crop).pack_size == (256 if crop == "resized" else 224)


def test_stored_images_are_as_large_as_the_crop_of_the_weights_says() -> None:
    assert BASE.changed(crop="resized", image_size=288, crop_pct=0.95).pack_size == 303
    assert BASE.changed(crop="resized", crop_pct=1.0).pack_size == 224


def test_seeds_of_any_size_that_is_taken_make_batches() -> None:
    stream = Stream(
        images=np.zeros((4, 8, 8, 3), np.uint8),
        labels=np.arange(4),
        indices=np.arange(4),
        batch_size=2,
        num_classes=4,
        augmentation=Augmentation(source_size=8, size=8, flip=False),
        seed=BASE.changed(**parse_settings([f"seed={2**31 - 1}"])).seed,
    )
    assert stream.batch(0)[1].shape == (2, 4)
    with pytest.raises(UsageError, match="seed: received"):
        BASE.changed(**parse_settings([f"seed={2**70}"]))


@pytest.mark.parametrize(
    ("synonym", "key"),
    [("lr", "learning_rate"), ("WD", "weight_decay"), ("bs", "batch_size"), ("img-size", "image_size")],
)
def test_a_key_by_its_name_elsewhere_is_answered_with_ours(synonym: str, key: str) -> None:
    with pytest.raises(UsageError, match=f"{synonym!r}.*{key!r}"):
        BASE.changed(**parse_settings([f"{synonym}=1"]))


def test_synonyms_lead_to_keys_and_hide_none() -> None:
    assert set(SYNONYMS.values()) <= set(Recipe.model_fields)
    assert not set(SYNONYMS) & set(Recipe.model_fields)


def test_every_key_is_described() -> None:
    assert all(field.description for field in Recipe.model_fields.values())


@pytest.mark.parametrize(
    ("text", "expected"),
    [("True", True), ("no", False), ("OFF", False), ("false", False), ("alternating", "alternating")],
)
def test_flip_takes_what_other_switches_take(text: str, expected: object) -> None:
    assert BASE.changed(**parse_settings([f"flip={text}"])).flip == expected


def test_a_folder_named_like_a_data_set_has_the_recipe_of_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert choose_recipe("digits", None, {}, report=LogProgress()).name == "quick"
    (tmp_path / "digits").mkdir()
    assert choose_recipe("digits", None, {}, report=LogProgress()).name == "photos"
