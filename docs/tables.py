"""The tables of README.md and docs/, written from what is in results/ and from the code; and the chart of speed.

    python docs/tables.py             rewrite them
    python docs/tables.py --check     only say whether they are up to date; exit code 1 where not (a second)

A page holds `<!-- table: NAME -->` ... `<!-- /table -->`; what stands between is this program's. NAME is a row of
TABLES below, and shows all results whose file name begins as the row says, one machine each.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from resnetlab.progress import format_count  # noqa: E402

MARKERS = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- /table -->)", re.DOTALL)

Result = dict[str, Any]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: bool = True) -> str:
    """A table whose columns but the first are numbers, or all of which are text."""
    rule = ["---", *["---:" if numbers else "---"] * (len(head) - 1)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in (head, rule, *rows))


def conditions(result: Result) -> str:
    """Under each table: where, when, with what."""
    device, versions = result["device"], result["environment"]["versions"]
    names = (("tensorflow", "tensorflow-cpu"), ("torch",), ("jax",), ("keras",))
    found = [f"{options[0]} {versions[name]}" for options in names for name in options if name in versions]
    machine = device["gpu"] or f"{device['cpu']}, {format_count(device['cores'], 'core')}"
    more = "".join(f" {text}." for key in ("as installed", "clock") if (text := result["configuration"].get(key)))
    when = f"{result['measured_at'][:10]}, commit {result['commit']}"
    return f"\n{machine}; {', '.join(found)}; {when}.{more}\n"


def throughput(result: Result) -> str:
    """A table for each job: images/s, and how many times as fast each of ours is."""
    tables = []
    for job in dict.fromkeys(row["job"] for row in result["rows"] if "over" in row):
        rows = [row for row in result["rows"] if row["job"] == job]
        ratios = {
            (row["ours"], row["over"]): f"**{row['median']:.2f} x** ({row['minimum']:.2f} - {row['maximum']:.2f})"
            for row in rows
            if "over" in row
        }
        ours = list(dict.fromkeys(mine for mine, _ in ratios))
        cells = (
            [
                row["contender"],
                f"{row['median']:,.1f}",
                f"{row['share_of_matrix_product']:.0%}",
                *(ratios.get((mine, row["contender"]), "") for mine in ours),
            ]
            for row in rows
            if row.get("unit") == "images/s"
        )
        head = [job, "images/s", "fraction of matmul rate", *(f"{mine} ÷ this" for mine in ours)]
        tables.append(markdown(head, cells))
    return "\n".join(tables) + first_step(result) + conditions(result)


def precision(result: Result) -> str:
    """A table for each job: images/s of each contender in both precisions, and how many times as fast ours is in
    bfloat16 as its faster one."""
    ours = "ours, tensorflow"
    tables = []
    for job in dict.fromkeys(row["job"] for row in result["rows"] if "over" in row):
        rows = [row for row in result["rows"] if row["job"] == job]
        ratios = {row["over"]: row["median"] for row in rows if row.get("ours") == f"{ours}, bfloat16"}
        contenders: dict[str, dict[str, Result]] = {}
        for row in rows:
            if row.get("unit") == "images/s":
                contenders.setdefault(row["contender"].rpartition(", ")[0], {})[row["precision"]] = row
        cells = []
        for name, found in contenders.items():
            faster = max(found, key=lambda key: found[key]["median"])
            over = "float32" if name == ours else faster
            rates = [
                f"{found[key]['median']:,.1f} ({found[key]['share_of_matrix_product']:.0%})" if key in found else ""
                for key in ("float32", "bfloat16")
            ]
            cells.append([name, *rates, f"**{ratios[f'{name}, {over}']:.2f} x** ({over})"])
        head = [job, "float32, images/s", "bfloat16, images/s", f"{ours}, bfloat16 ÷ this"]
        tables.append(markdown(head, cells))
    how = "In brackets: fraction of the matmul rate in this precision; and in which precision this is faster.\n"
    return "\n".join([*tables, how]) + conditions(result)


def first_step(result: Result) -> str:
    rows = [row for row in result["rows"] if row.get("job") == "first-step" and "median" in row]
    keys = ("import", "build", "trace_and_compile")
    cells = ([r["contender"], f"**{r['median']:.1f}**", *(f"{r['parts'][key]:.1f}" for key in keys)] for r in rows)
    head = ["seconds to the end of the first step", "in all", "import", "build", "trace, compile"]
    return "\n" + markdown(head, cells) if rows else ""


def input_pipeline(result: Result) -> str:
    rows = [row for row in result["rows"] if "median" in row]
    ratios = {(row["part"], row["over"]): f"{row['median']:.2f} x" for row in rows if "over" in row}

    def value(row: dict[str, Any]) -> str:
        return (
            f"{row['median']:.1%} of the step ({row['minimum']:.1%} to {row['maximum']:.1%})"
            if row["unit"].startswith("share")
            else f"{row['median']:,.0f} images/s"
        )

    cells = (
        [f"{row['part']}: {row['contender']}", value(row), ratios.get((row["part"], row["contender"]), "")]
        for row in rows
        if "contender" in row
    )
    return markdown(["", "rate", "ours ÷ theirs"], cells) + conditions(result)


def gpu(result: Result) -> str:
    rows = [row for row in result["rows"] if row["part"] == "throughput" and "batch" in row]
    cells = (
        [
            row["contender"],
            str(row["batch"]),
            row["input"],
            f"{row['median']:,.0f}",
            f"{row['share_of_matrix_product']:.0%}" if "share_of_matrix_product" in row else "",
        ]
        for row in rows
        if row["unit"] == "images/s"
    )
    head = ["ResNet-50, 224x224, bfloat16, training", "batch", "input", "images/s", "fraction of matmul rate"]
    return markdown(head, cells) + conditions(result)


VERDICTS = {True: "yes", False: "**not reproduced**", None: "cannot tell"}


def study(result: Result) -> str:
    """The figure of a study, and its claims with what was measured of them."""
    chosen = result["configuration"]
    how = "quick" if chosen["quick"] else "full"
    size = chosen.get("image_size") or chosen["pretraining"]["image_size"]
    more = f", {1 - chosen['validation']:.0%} of the training images" if chosen.get("validation") else ""
    more += f", {chosen['epochs']} epochs" if "epochs" in chosen else ""
    cells = ([claim["text"], claim["measured"], VERDICTS[claim["reproduced"]]] for claim in result["claims"])
    return (
        f"**{result['what']}** ({how}: {size}x{size} pixels{more}; seed {chosen['seed']})\n\n"
        f"![{result['what']}]({{results}}/{result['figure']})\n\n"
        f"{markdown(['claim', 'measured', 'reproduced'], cells, numbers=False)}{conditions(result)}"
    )


def inference(result: Result) -> str:
    """For each network: size, what an export keeps of the accuracy, latency of one image, rate of 32, over Keras."""
    rows, texts = result["rows"], []
    for job in dict.fromkeys(row["job"] for row in rows):
        mine = [row for row in rows if row["job"] == job]
        exports = {row["export"]: row for row in mine if "bytes" in row}
        rates = {(row["contender"], row["batch"]): row["median"] for row in mine if row.get("unit") == "images/s"}
        ratios = {row["ours"]: row for row in mine if row.get("over") == "Keras, TensorFlow" and row["batch"] > 1}

        def cells(who: str, exports: Result = exports, rates: Result = rates, ratios: Result = ratios) -> list[str]:
            kept = exports.get(who)
            one, many = (
                rates.get((who, 1)),
                next((r for (w, batch), r in rates.items() if w == who and batch > 1), None),
            )
            return [
                who,
                f"{kept['bytes'] / 1e6:.1f} ({kept['share_of_float32']:.2f})" if kept else "",
                f"{kept['accuracy']:.1%} ({100 * (kept['accuracy'] - kept['accuracy_keras']):+.1f})" if kept else "",
                f"{1e3 / one:.1f}" if one else "",
                f"{many:,.1f}" if many else "",
                f"**{ratios[who]['median']:.2f} x**" if who in ratios else "",
            ]

        head = [
            job,
            "MB (of float32)",
            "accuracy (difference from Keras)",
            "one image, ms",
            "batch of 32, images/s",
            "over Keras",
        ]
        names = dict.fromkeys([who for who, _ in rates] + list(exports))
        texts.append(markdown(head, map(cells, names)))
        pairs = [row for row in mine if "over" in row and row["over"] != "Keras, TensorFlow" and row["batch"] > 1]
        told = [f"{row['ours']} over {row['over']}: **{row['median']:.2f} x**" for row in pairs]
        told += [
            f"memory of {row['files']:,} files: {row['peak_mb_after_a_tenth']} MB at 10 %, {row['peak_mb']} at the end"
            for row in mine
            if "files" in row
        ]
        texts.append("; ".join(told) + ".\n" if told else "")
    return "\n".join(texts) + "\n" + conditions(result)


def serving(result: Result) -> str:
    """The server under load beside its engine alone and a bare handler, and what became of hostile requests."""
    rows, chosen = result["rows"], result["configuration"]
    ratios = {row["ours"]: row for row in rows if row["part"] == "ratio"}
    cells = []
    for row in rows:
        if row["part"] == "engine":
            texts = [f"{row['median']:.1f}", "", "", ""]
        elif row["part"] == "load":
            times = f"{row['p50_ms']:,.0f} / {row['p99_ms']:,.0f}"
            ratio = f"**{ratios[row['contender']]['median']:.2f} x**"
            texts = [f"{row['images_per_second']:.1f}", ratio, times, f"{row['errors']} of {row['answered']:,}"]
        else:
            continue
        cells.append([row["contender"], *texts, f"{row['processor_ms_per_image']:.1f}"])
    head = [chosen["model"], "images/s", "of the engine's", "p50 / p99, ms", "errors", "processor time, ms an image"]
    texts = [markdown(head, cells)]
    for row in rows:
        if row["part"] == "hostile":
            endings = ", ".join(f"{many:,} x {ending}" for ending, many in row["endings"].items())
            texts.append(
                f"Hostile requests: {row['requests']:,} of {row['kinds']} kinds in {row['seconds']:,.0f} s: {endings}; "
                f"{row['neither_4xx_nor_closed']} were neither answered with a 4xx nor closed. Good requests between "
                f"them were answered as before: {row['good_requests_answered_as_before']}. Memory: at most "
                f"{row['peak_mb_before']} MB before, {row['peak_mb_after_each_tenth'][0]} MB after a tenth, "
                f"{row['peak_mb_after_each_tenth'][-1]} MB at the end.\n"
            )
    load = chosen["load_average_before"]
    shared = f" Other programs ran too: load average {load} before it began." if load > 1 else ""
    how = "Medians over the turns; of a turn with fewer than 100 answers the slowest stands for p99. "
    how += f"{chosen['load']}; weights: {chosen['weights']}; {chosen['file']}.{shared}\n"
    return "\n".join([*texts, how]) + conditions(result)


def run(result: Result) -> str:
    """One training run, as record_run.py keeps it."""
    recipe, judged = result["configuration"], result["evaluation"]
    low, high = judged["top1_interval"]
    cells = [
        f"{recipe['model']}, recipe {recipe['name']}",
        str(recipe["epochs"]),
        f"**{judged['top1']:.2%}** ({low:.2%} - {high:.2%})",
        f"{result['training_seconds'] / 60:,.0f} min",
    ]
    return markdown(
        ["from scratch", "epochs", f"top-1, {judged['n']:,} {judged['subset']} images", "training"], [cells]
    )


def accuracy(found: Sequence[Result]) -> str:
    """Recipes over seeds, as studies/accuracy.py keeps them: a row for each, without the ablations."""
    text = markdown(ACCURACY_HEAD, map(accuracy_cells, found))
    return text + "".join(dict.fromkeys(map(conditions, found)))


ACCURACY_HEAD = (
    "network",
    "recipe",
    "epochs",
    "seeds",
    "top-1",
    "with test-time flips",
    "training",
    "fraction of matmul rate",
)


def accuracy_cells(result: Result) -> list[str]:
    recipe, rows = result["configuration"], result["rows"]
    shares = [row["share_of_matrix_product"] for row in rows]
    machines: dict[str, list[float]] = {}
    for row in rows:
        device = row["device"].removesuffix(" Processor").replace("(R)", "")
        machines.setdefault(f"{format_count(row['cores'], 'core')} of {device}, {row['precision']}", []).append(
            row["seconds"] / 60
        )
    return [
        recipe["model"],
        recipe["name"],
        str(recipe["epochs"]),
        str(len(rows)),
        f"**{percent_with_spread(rows, 'top1')}**",
        percent_with_spread(rows, "top1_with_flips"),
        "; ".join(f"{statistics.fmean(minutes):.3g} min, {machine}" for machine, minutes in machines.items()),
        " - ".join(f"{share:.0%}" for share in sorted({min(shares), max(shares)})),
    ]


def percent_with_spread(rows: Sequence[Result], key: str) -> str:
    """The mean of a fraction, and its standard deviation where there are several, in percent."""
    values = [100 * row[key] for row in rows]
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread} %"


def small_data(result: Result) -> str:
    """Recipes on few images, by seed or fold, as studies/small_data.py keeps them."""
    by_recipe: dict[str, list[Result]] = {}
    for row in result["rows"]:
        by_recipe.setdefault(row["recipe"], []).append(row)
    cells = []
    for name, rows in by_recipe.items():
        settings = result["configuration"]["recipes"][name]
        trained = (
            rows[0].get("network", settings["model"])
            + f", {'at most ' * bool(settings['early_stopping'])}{settings['epochs']} epochs"
        )
        cells.append([f"`{name}`", trained, f"**{percent_with_spread(rows, 'top1')}**"])
    runs = len(result["rows"]) // len(by_recipe)
    each = "folds" if result["rows"][0]["of"].startswith("fold") else "seeds"
    head = ("recipe", "network", f"top-1, mean ± standard deviation of {runs} {each}")
    return markdown(head, cells) + conditions(result)


def reliability(result: Result) -> str:
    """What was done how often, what came of it, and what went wrong."""
    cells = []
    for row in result["rows"]:
        found = [format_count(row[f"{noun}s"], noun) for noun in ("kill", "time", "run", "case") if f"{noun}s" in row]
        found += [f"{row[key]:,} {key}" for key in ("refused", "accepted") if key in row]
        if "steps_lost_at_most" in row:
            lost, every = row["steps_lost_at_most"], row["steps_between_checkpoints"]
            found.append(f"at most {lost} steps lost, with a checkpoint every {every}")
        if "mutated" in row:
            found += [f"{row['mutated']:,} mutated", f"{row['packed']:,} packed", f"{row['predicted']:,} predicted"]
            found.append(f"at most {row['slowest_image_seconds']} s an image")
        if "slowest_seconds" in row:
            found.append(f"at most {row['slowest_seconds']:.1f} s")
        if "peak_mb" in row:
            found.append(f"at most {row['peak_mb']:,.0f} MB")
        what = result["what"] + (f": {row['backend']}" if "backend" in row else "")
        what = f"Hostile files: {row['group']}" if "group" in row else what
        cells.append([what, "; ".join(found), f"**{len(row['problems']) or 'none'}**"])
    return markdown(["what", "measured", "problems"], cells, numbers=False) + conditions(result)


def catalog(result: Result) -> str:
    """Time and memory of each step by the number of images."""
    steps = ("scan", "audit", "split", "pack", "reuse")
    cells = [
        [
            f"{row['images']:,}",
            *(f"{row[f'{step}_seconds']:,.1f} s, {row[f'{step}_peak_mb']:,.0f} MB" for step in steps),
        ]
        for row in result["rows"]
    ]
    return markdown(["images", *steps], cells) + conditions(result)


def memory(result: Result) -> str:
    """Slopes of a long run's memory."""
    (row,), chosen = result["rows"], result["configuration"]
    settings = ", ".join(chosen["settings"])
    text = (
        f"{row['hours']:.1f} hours of training on {chosen['data']} (recipe {chosen['recipe']}, {settings}; "
        f"{row['epochs']:,} epochs, {row['steps']:,} steps): {row['mib_after_warm_up']:,.0f} MiB resident after "
        f"{60 * row['warm_up_hours']:.0f} minutes, {row['mib_at_the_end']:,.0f} MiB at the end.\n\n"
    )
    names = {"mib": "resident", "held": "held by malloc", "allocated": "allocated and not freed", "tensors": "tensors"}
    cells = []
    for key, name in names.items():
        rate = row["mib_per_hour" if key == "mib" else f"{key}_mib_per_hour"]
        error = row["standard_error" if key == "mib" else f"{key}_standard_error"]
        cells.append([name, f"{rate:+.2f}", f"{error:.2f}"])
    return text + markdown(["memory", "MiB per hour (fitted)", "standard error"], cells) + conditions(result)


def shards(result: Result) -> str:
    """How long packing takes, and the rate of batches from shards over that from one file."""
    rows = {row["part"]: row for row in result["rows"]}
    packing, one, many = rows["packing"], rows["one file"], rows["shards"]
    text = (
        f"{packing['images']:,} JPEG files of {result['configuration']['side']}x{result['configuration']['side']} into "
        f"{packing['shards']} shards: {packing['seconds']:.0f} s ({packing['images_per_second']:,} images/s); their "
        f"checksums take {packing['checking_seconds']:.1f} s, once. Batches of 128 with augmentation: "
        f"{many['median']:,.0f} images/s from shards, {one['median']:,.0f} from one file, "
        f"**{rows['ratio']['median']:.2f} x** (median of {one['n']}, in turns).\n"
    )
    return text + conditions(result)


def checkpoint_cost(result: Result) -> str:
    cells = [
        [
            row["model"],
            f"{row['megabytes']:,.1f} MB",
            f"{row['step_ms']:,.0f} ms",
            f"{row['extra_seconds']:.3f} s",
            f"**{row['share_at_default']:.2%}**",
        ]
        for row in result["rows"]
    ]
    heads = ["model", "checkpoint", "training step", "a checkpoint takes", "of the time, at every 5 minutes"]
    return markdown(heads, cells) + conditions(result)


def scale(result: Result) -> str:
    """Two processes beside one, and what that is expected to be; then the model of many GPUs."""
    rows = result["rows"]
    speed = {(r["job"], r["processes"]): r["median"] for r in rows if r["part"] == "processes"}
    measured = [
        [
            r["job"],
            f"{speed[r['job'], 1]:.1f}",
            f"{speed[r['job'], 2]:.1f}",
            f"**{r['median']:.2f} x**",
            f"{r['minimum']:.2f} - {r['maximum']:.2f}",
            f"{r['gradient_mb']:.1f} MB in {r['add_up_ms']:.0f} ms",
            f"{r['times_in_a_step']} x {r['add_up_100_bytes_ms']:.1f} ms of {r['step_ms_of_one_process']:,.0f} ms",
            f"{r['expected']:.2f} x",
        ]
        for r in rows
        if r["part"] == "ratio"
    ]
    heads = [
        "job",
        "one process, images/s",
        "two",
        "ratio",
        "range",
        "gradient all-reduce",
        "all-reduces per step",
        "expected",
    ]
    computed = [
        [
            r["network"],
            str(r["gpus"]),
            f"{r['images_per_second_of_one']:,}",
            f"{r['step_ms']:.0f} ms",
            f"{r['transfer_ms']:.1f} ms",
            f"{r['efficiency_without_overlap']:.0%}",
            f"**{r['efficiency']:.0%}**",
            f"{r['input_mb_per_second_of_a_node'] / 1000:.1f} GB/s",
        ]
        for r in rows
        if r["part"] == "model"
    ]
    model_heads = ["interconnect", "GPUs", "images/s of one", "step", "transfer", "efficiency without overlap"]
    model_heads += ["with overlap", "input of a node"]
    return markdown(heads, measured) + conditions(result) + "\nComputed:\n\n" + markdown(model_heads, computed)


def models() -> str:
    """All architectures, a row for each paper and kind."""
    from resnetlab.models import VARIANTS, summarize

    groups: dict[tuple[str, str], list[Any]] = {}
    for arch in VARIANTS.values():
        kind = (
            "keras.applications"
            if arch.name.startswith("keras")
            else "plain"
            if arch.shortcut == "none"
            else arch.paper
        )
        groups.setdefault((kind, "CIFAR" if arch.reference_size == 32 else "ImageNet"), []).append(arch)
    cells = (
        [
            ", ".join(f"`{arch.name}`" for arch in group),
            f"{kind}, {data}",
            " - ".join(
                f"{count / 1e6:.1f}"
                for count in sorted({f(summarize(a).parameters for a in group) for f in (min, max)})
            ),
        ]
        for (kind, data), group in groups.items()
    )
    return markdown(["models", "after", "million parameters"], cells)


def recipes() -> str:
    from resnetlab.recipes import RECIPES

    return markdown(
        ["recipe", "for"], ([f"`{name}`", recipe.description] for name, recipe in RECIPES.items()), numbers=False
    )


def keys() -> str:
    from resnetlab.recipes import BASE, describe_fields

    rows = ([f"`{key.name}`", f"`{key.default}`", key.description, key.expected] for key in describe_fields(BASE))
    return markdown(["key", "default", "meaning", "values"], rows, numbers=False)


Table = Callable[[Sequence[Result]], str]


def one_by_one(make: Callable[[Result], str]) -> Table:
    """A table for each result."""
    return lambda found: "\n".join(map(make, found))


# name of a table: (what the files' names begin with, what makes Markdown of them)
TABLES: dict[str, tuple[str, Table]] = {
    "throughput": ("throughput", one_by_one(throughput)),
    "precision": ("precision", one_by_one(precision)),
    "input-pipeline": ("input-pipeline", one_by_one(input_pipeline)),
    "inference": ("inference", one_by_one(inference)),
    "serving": ("serving", one_by_one(serving)),
    "cifar": ("cifar10", one_by_one(run)),
    "accuracy": ("accuracy", accuracy),
    "small-data": ("small-data-cifar", one_by_one(small_data)),
    "small-data-animals": ("small-data-animals", one_by_one(small_data)),
    "gpu": ("gpu", one_by_one(gpu)),
    "studies": ("study", one_by_one(study)),
    "reliability": ("reliability-[kdhi]", one_by_one(reliability)),  # kills, disk-full, hostile, images
    "scale": ("scale", one_by_one(scale)),
    "shards": ("shards", one_by_one(shards)),
    "catalog": ("reliability-catalog", one_by_one(catalog)),
    "memory": ("reliability-memory", one_by_one(memory)),
    "checkpoint-cost": ("reliability-checkpoints", one_by_one(checkpoint_cost)),
}
FROM_CODE: dict[str, Callable[[], str]] = {"models": models, "recipes": recipes, "keys": keys}


def table(name: str, results: Path, *, from_page: str) -> str:
    """The Markdown of a table, for all machines. Raises KeyError for a table that there is not."""
    if name in FROM_CODE:
        return "\n" + FROM_CODE[name]() + "\n"
    prefix, make = TABLES[name]
    files = [path for path in sorted(results.glob(f"{prefix}*.json")) if shown(path.stem)]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    made = make(found) if found else "Not measured yet.\n"
    return "\n" + made.replace("{results}", from_page) + "\n"


def shown(stem: str) -> bool:
    """Whether a result is one of a table: not of a trial, an ablation, or changed settings other than the epochs."""
    return not re.search("smoke|-without-|=", re.sub(r"-epochs=\d+$", "", stem))


def fill(text: str, results: Path, *, from_page: str = "results") -> str:
    """The text of a page with its tables made anew; `from_page` is the way from it to the results."""
    return MARKERS.sub(lambda found: found[1] + table(found["name"], results, from_page=from_page) + found[3], text)


def speed_chart(results: Path, path: Path, job: str = "resnet50-64-b32") -> None:
    """Bars of training throughput on the CPU: ours and others."""
    from resnetlab.report import plots

    found = json.loads((results / "throughput-amd-epyc-2-cores.json").read_text(encoding="utf-8"))
    rows = [row for row in found["rows"] if row["job"] == job and row.get("unit") == "images/s"]
    rows.sort(key=lambda row: row["median"])

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        colours = [plots.BLUE if row["contender"].startswith("ours") else "#b0b0b0" for row in rows]
        bars = axes.barh([row["contender"] for row in rows], [row["median"] for row in rows], color=colours)
        axes.bar_label(bars, fmt="%.0f", padding=4)
        axes.set_xlabel("images/s")
        axes.set_title("Training ResNet-50, 64x64, batch 32, float32, on two CPU cores")
        axes.grid(axis="y", visible=False)

    plots.write(draw, path, size=(8, 2.8))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--page", type=Path, action="append", help="default: README.md and docs/*.md")
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    options = parser.parse_args(arguments)
    stale = []
    for page in options.page or [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        before = page.read_text(encoding="utf-8")
        after = fill(before, options.results, from_page="../results" if page.parent.name == "docs" else "results")
        if before != after:
            stale.append(str(page))
            if not options.check:
                page.write_text(after, encoding="utf-8")
    if stale and options.check:
        print(f"{', '.join(stale)}: tables are not those of {options.results}. Do: python docs/tables.py")
        return 1
    if not options.check and not options.page:
        speed_chart(options.results, options.results / "speed.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
