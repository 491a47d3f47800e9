"""What pre-training without labels is worth where labels are few.

    python benchmarks/pretraining.py digits
    python benchmarks/pretraining.py digits --method simmim
    python benchmarks/pretraining.py settings
    python benchmarks/pretraining.py shapes --method lejepa_dense

`digits`: `vmamba_pico` on the 1437 digits of scikit-learn without their labels, then probes and fine-tuning on a few
labels a class, beside raw pixels, the untrained model and training from scratch. `settings`: fine-tuning and training
from scratch in other ways, measured on 360 other training images, to choose from. `shapes`: UperNet on a tenth of the
built-in pictures' label maps, after pre-training on all pictures, and from scratch with as many steps in all, or on
labels. A seed is one of pre-training, of the labels and of fine-tuning. Give the same command again to go on. Writes
``results/pretraining_NAME.csv``.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import RESULTS, environment

from vmamba.data.image_folder import ImageFolder
from vmamba.data.shapes import write_shapes
from vmamba.demo import write_digits
from vmamba.progress import quiet
from vmamba.studies.features import TRAINED, UNTRAINED, extract, untrained
from vmamba.studies.probing import choose, probe
from vmamba.tables import read_csv, write_csv
from vmamba.tasks.classification.options import ClassificationOptions
from vmamba.tasks.classification.task import Classification
from vmamba.tasks.protocol import Job
from vmamba.training.distributed import Processes
from vmamba.training.loop import train
from vmamba.training.recipe_files import load_recipe
from vmamba.zoo import model_from_checkpoint

PICO: dict[str, Any] = {"model": "vmamba_pico", "workers": 0, "keep": 1}
#: For digits: no colours to change, views of half the digit and more.
DIGITS: dict[str, dict[str, Any]] = {
    "lejepa": {
        "image_size": 32, "batch_size": 32, "color_jitter": 0.0, "global_scale": [0.4, 1.0], "local_scale": [0.4, 1.0],
        "embedding": 16, "sigreg_weight": 0.1,
    },
    "simmim": {"image_size": 32},
}  # fmt: skip
#: Epochs of pre-training on digits that take about as long: two minutes of one processor.
EPOCHS = {"lejepa": 12, "simmim": 48}
#: Labels a class that are learnt from.
FEW = (2, 9)
FEWEST = 2
TUNING_STEPS = 100
#: Training images that settings are chosen on.
CHOOSING = 360
#: Ways of learning from the fewest labels → recipe and what is changed in it.
TUNED: dict[str, tuple[str, dict[str, Any]]] = {
    "fine-tuned, linear probe first": ("finetune/few_labels", {}),
    "fine-tuned, lr 1e-3, linear probe first": ("finetune/few_labels", {"lr": 1e-3}),
    "fine-tuned": ("finetune", {}),
    "fine-tuned, lr 1e-3": ("finetune", {"lr": 1e-3}),
    "fine-tuned, lr 3e-3": ("finetune", {"lr": 3e-3}),
    "fine-tuned, lr 3e-3, layer decay 0.5": ("finetune", {"lr": 3e-3, "layer_decay": 0.5}),
    "fine-tuned, lr 1e-2, layer decay 0.5": ("finetune", {"lr": 1e-2, "layer_decay": 0.5}),
    "fine-tuned, lr 1e-2, layer decay 0.3": ("finetune", {"lr": 1e-2, "layer_decay": 0.3}),
    "fine-tuned, lr 3e-3, layer decay 0.5, smaller crops": (
        "finetune", {"lr": 3e-3, "layer_decay": 0.5, "crop_scale": [0.4, 1.0]},
    ),
    "from scratch": ("scratch", {}),
    "from scratch, lr 1e-3": ("scratch", {"lr": 1e-3}),
    "from scratch, lr 1e-2": ("scratch", {"lr": 1e-2}),
    "from scratch, smaller crops": ("scratch", {"crop_scale": [0.4, 1.0]}),
}  # fmt: skip
#: Those that are measured on validation images.
CHOSEN = ("fine-tuned, linear probe first", "fine-tuned", "from scratch")
#: Pictures of shapes and their size.
PICTURES, SHAPES_SIZE = 600, 64
#: Methods for them, and what is changed of their recipes.
SHAPES: dict[str, dict[str, Any]] = {
    "lejepa": {"batch_size": 32, "lr": 3e-3},
    "simmim": {"batch_size": 32, "lr": 3e-3},
    "lejepa_dense": {},
}
Row = dict[str, object]


def run(recipe: str, output: Path, **overrides: Any) -> tuple[Path, float]:
    """Train, or go on; the weights, and the seconds of processor time that all of it took."""
    start, spent = time.process_time(), output / "seconds.txt"
    with quiet():
        train(load_recipe(recipe, {**PICO, **overrides}), output, Processes(torch.device("cpu")), resume="auto")
    seconds = time.process_time() - start + (float(spent.read_text()) if spent.exists() else 0.0)
    spent.write_text(f"{seconds:.1f}")
    return output / "weights" / "model.safetensors", seconds


def few_labels(digits: Path, folder: Path, count: int, seed: int, *, validation: Path | None = None) -> Path:
    """A data set of `count` training images of each class, and `CHOOSING` others or those of `validation`."""
    files = ImageFolder(digits / "train")
    shutil.rmtree(folder, ignore_errors=True)
    chosen = choose(files.labels, count, seed)
    order = np.random.default_rng(100 + seed).permutation(len(files.labels))
    if validation is None:
        parts = {"train": chosen, "val": order[~np.isin(order, chosen)][:CHOOSING]}
    else:
        parts = {"train": chosen}
        folder.mkdir(parents=True)
        (folder / "val").symlink_to(validation.resolve())
    for split, indices in parts.items():
        for i in indices:
            name = Path(files.name(int(i)))
            (folder / split / name.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(name, folder / split / name.parent.name)
    return folder


def tuned(what: str, weights: Path, data: Path, output: Path, seed: int) -> Row:
    """Top-1 of the last weights after a fixed number of steps on 20 labels; the better of weights and average."""
    recipe, changes = TUNED[what]
    start: dict[str, Any] = {} if recipe == "scratch" else {"checkpoint": str(weights), "model": None}
    steps: dict[str, Any] = {"epochs": TUNING_STEPS, "batch_size": 10 * FEWEST, "validate_every": TUNING_STEPS}
    common = {"data": str(data), "seed": seed, "warmup_epochs": TUNING_STEPS // 10, "image_size": 32}
    run(recipe, output / what.replace(", ", "-").replace(" ", "-"), **common, **steps, **changes, **start)
    row = read_csv(output / what.replace(", ", "-").replace(" ", "-") / "epochs.csv")[-1]
    return {"labels": FEWEST, "what": what, "value": round(max(float(row["top1"]), float(row["ema_top1"])), 2)}


def pretrained_on_digits(folder: Path, seed: int, method: str, epochs: int) -> tuple[Path, Path, float]:
    """The data, the weights, and the seconds of processor time of pre-training."""
    data = write_digits(folder / "digits")
    settings = {"data": str(data), "epochs": epochs, "seed": seed, "validate_every": 3, **DIGITS[method]}
    return data, *run(f"pretrain/{method}", folder / f"{method}-{epochs}-{seed}" / "pretrained", **settings)


def digits(folder: Path, seed: int, method: str, epochs: int) -> Iterator[Row]:
    """Probes and fine-tuning after one run of pre-training."""
    data, weights, seconds = pretrained_on_digits(folder, seed, method, epochs)
    yield {"labels": "", "what": "pre-training, CPU s", "value": round(seconds, 1)}
    task = Classification(
        Job(data=str(data), checkpoint=str(weights), batch_size=64, workers=0), ClassificationOptions()
    )
    task.setup()
    model = model_from_checkpoint(weights).eval()
    models = {TRAINED: model, UNTRAINED: untrained(model, seed)}
    train_features, val = (extract(models, task.evaluation_loader(split), split) for split in ("train", "val"))
    for score in probe(train_features, val, [*FEW, None], seeds=seed + 1):
        if score.seed == seed or score.labels_per_class is None:
            count = "all" if score.labels_per_class is None else score.labels_per_class
            what = f"{score.probe} probe, {score.features}"
            yield {"labels": count, "what": what, "value": round(score.accuracy, 2)}
    mine = folder / f"{method}-{epochs}-{seed}"
    labelled = few_labels(data, mine / "labelled", FEWEST, seed, validation=data / "val")
    for what in CHOSEN:
        yield tuned(what, weights, labelled, mine, seed)


def settings(folder: Path, seed: int, method: str, epochs: int) -> Iterator[Row]:
    """Every way of fine-tuning and of training from scratch, measured on other training images."""
    data, weights, _ = pretrained_on_digits(folder, seed, method, epochs)
    mine = folder / f"{method}-{epochs}-{seed}" / "settings"
    labelled = few_labels(data, mine / "labelled", FEWEST, seed)
    for what in TUNED:
        yield tuned(what, weights, labelled, mine, seed)


def shapes(folder: Path, seed: int, method: str, epochs: int, labelled_epochs: int) -> Iterator[Row]:
    """UperNet on a tenth of the label maps, pre-trained and from scratch."""
    root = folder / "shapes" / "ade20k"
    if not root.is_dir():
        write_shapes(folder / "shapes", train=PICTURES, val=100, image_size=SHAPES_SIZE, seed=0)
    tenth = folder / "tenth"
    if not tenth.is_dir():
        shutil.copytree(root, tenth)
        for i, path in enumerate(sorted((tenth / "images" / "training").iterdir())):
            if i % 10:
                path.unlink()
                (tenth / "annotations" / "training" / path.with_suffix(".png").name).unlink()
    mine = folder / f"shapes-{method}-{epochs}-{seed}"
    options = {"data": str(root / "images"), "epochs": epochs, "seed": seed, "validate_every": epochs}
    weights, seconds = run(
        f"pretrain/{method}", mine / "pretrained", **options, **SHAPES[method], image_size=SHAPES_SIZE
    )
    steps = PICTURES // 32 * epochs
    more = -(-steps // (PICTURES // 10 // 8))  # epochs on the tenth with as many steps
    yield {"labels": "", "what": "pre-training, CPU s", "value": round(seconds, 1)}
    size = {"crop": SHAPES_SIZE, "image_size": SHAPES_SIZE, "max_size": 4 * SHAPES_SIZE}
    for what, total, start in (
        ("fine-tuned", labelled_epochs, {"checkpoint": str(weights), "model": None}),
        ("from scratch, equal steps", labelled_epochs + more, {}),
        ("from scratch, as many on labels", labelled_epochs, {}),
    ):
        output = mine / f"{what.replace(', ', '-').replace(' ', '-')}-{labelled_epochs}"
        common = {"data": str(tenth), "epochs": total, "seed": seed, "validate_every": total}
        run("shapes/segmentation", output, **common, **size, **start)
        row = read_csv(output / "epochs.csv")[-1]
        miou = max(float(row["miou"]), float(row["ema_miou"]))
        yield {"labels": "10 %", "what": f"{what}, {labelled_epochs} epochs on labels, mIoU", "value": round(miou, 2)}


def differences(rows: Sequence[Row]) -> Iterator[str]:
    """Mean and spread over the seeds of everything that was measured."""
    groups: dict[tuple[object, ...], list[float]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["epochs"], row["labels"], row["what"]), []).append(
            float(str(row["value"]))
        )
    for (method, epochs, labels, what), values in groups.items():
        spread = f" ({min(values):.1f} to {max(values):.1f}, {len(values)} seeds)" if len(values) > 1 else ""
        yield f"{method}, {epochs} epochs · {what} · {labels or '-'} labels: {statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=tuple(MEASURED))
    parser.add_argument("--method", choices=tuple(SHAPES), default="lejepa")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help=f"of pre-training (default {EPOCHS}, shapes: {EPOCHS['lejepa']})")
    parser.add_argument("--labelled-epochs", type=int, default=40, help="of segmentation (default 40, 280 steps)")
    parser.add_argument("--folder", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    method, measured = options.method, MEASURED[options.name]
    if options.name == "shapes":
        measured = partial(shapes, labelled_epochs=options.labelled_epochs)
    elif method not in DIGITS:
        parser.error(f"--method {method} is for shapes")
    epochs = options.epochs or EPOCHS["lejepa" if options.name == "shapes" else method]
    target = options.results / f"pretraining_{options.name}.csv"
    rows: list[Row] = [dict(row) for row in read_csv(target)] if target.exists() else []
    for seed in options.seeds:
        key = {"method": method, "epochs": epochs, "seed": seed}
        found: list[Row] = [{**key, **row} for row in measured(options.folder, seed, method, epochs)]
        new = {tuple(str(value) for value in list(row.values())[:-1]) for row in found}
        rows = [row for row in rows if tuple(str(value) for value in list(row.values())[:-1]) not in new] + found
        write_csv(target, rows, environment())
        print("\n".join(differences(found)), flush=True)
    print("\n".join(["", *differences(rows)]))


MEASURED: dict[str, Callable[..., Iterator[Row]]] = {"digits": digits, "settings": settings, "shapes": shapes}


if __name__ == "__main__":
    main()
