"""What pre-training without labels is worth where labels are few.

    python benchmarks/pretraining.py digits
    python benchmarks/pretraining.py shapes

`digits`: `vmamba_pico` on the 1437 digits of scikit-learn without their labels, then probes and fine-tuning on a few
labels a class, beside raw pixels, the untrained model and training from scratch; a seed is one of the labels and of
fine-tuning. `shapes`: UperNet on a tenth of the built-in pictures' label maps, after pre-training on all pictures, and
from scratch with as many steps in all. Give the same command again to go on. Writes ``results/pretraining_NAME.csv``.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
#: Labels a class that are learnt from.
FEW = (2, 9)
FEWEST = 2
TUNING_STEPS = 100
#: Pictures of shapes and their size, and epochs of segmentation on a tenth of them.
PICTURES, SHAPES_SIZE, SHAPES_EPOCHS = 600, 64, 40
Row = dict[str, object]


def run(recipe: str, output: Path, **overrides: Any) -> tuple[Path, float]:
    """Train, or go on; the weights, and the seconds of processor time of this process."""
    start = time.process_time()
    with quiet():
        train(load_recipe(recipe, {**PICO, **overrides}), output, Processes(torch.device("cpu")), resume="auto")
    return output / "weights" / "model.safetensors", time.process_time() - start


def few_labels(digits: Path, folder: Path, count: int, seed: int) -> Path:
    """A data set of `count` training images of each class, and all validation images."""
    files = ImageFolder(digits / "train")
    shutil.rmtree(folder, ignore_errors=True)
    for i in choose(files.labels, count, seed):
        name = Path(files.name(int(i)))
        (folder / "train" / name.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(name, folder / "train" / name.parent.name)
    (folder / "val").symlink_to((digits / "val").resolve())
    return folder


def fine_tuned(recipe: str, output: Path, **overrides: Any) -> float:
    """Top-1 of the last weights after a fixed number of steps on 20 labels; the better of weights and average."""
    steps: dict[str, Any] = {"epochs": TUNING_STEPS, "batch_size": 10 * FEWEST, "validate_every": TUNING_STEPS}
    run(recipe, output, warmup_epochs=10, image_size=32, **steps, **overrides)
    row = read_csv(output / "epochs.csv")[-1]
    return max(float(row["top1"]), float(row["ema_top1"]))


def digits(folder: Path, seed: int, method: str, epochs: int) -> Iterator[Row]:
    """Probes and fine-tuning of one seed, all from one run of pre-training."""
    data = write_digits(folder / "digits")
    mine = folder / f"{method}-{epochs}-{seed}"
    settings = {"data": str(data), "epochs": epochs, "validate_every": 3, **DIGITS[method]}
    weights, seconds = run(f"pretrain/{method}", folder / f"{method}-{epochs}", **settings)
    yield {"method": method, "seed": seed, "labels": "", "what": "pre-training, CPU s", "value": round(seconds, 1)}
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
            yield {"method": method, "seed": seed, "labels": count, "what": what, "value": round(score.accuracy, 2)}
    labelled = str(few_labels(data, mine / "labelled", FEWEST, seed))
    common = {"data": labelled, "seed": seed}
    for what, recipe, start in (
        ("fine-tuned", "finetune", {"checkpoint": str(weights), "model": None}),
        ("from scratch", "scratch", {}),
    ):
        top1 = fine_tuned(recipe, mine / what.replace(" ", "-"), **common, **start)
        yield {"method": method, "seed": seed, "labels": FEWEST, "what": what, "value": round(top1, 2)}


def shapes(folder: Path, seed: int, method: str, epochs: int) -> Iterator[Row]:
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
    batch, few = 32, PICTURES // 10 // 8  # pictures a step of pre-training, and steps of an epoch on the tenth
    pretraining = {"data": str(root / "images"), "epochs": epochs, "seed": seed, "batch_size": batch, "lr": 3e-3}
    options = {"image_size": SHAPES_SIZE, "validate_every": epochs}
    weights, seconds = run(f"pretrain/{method}", mine / "pretrained", **pretraining, **options)
    more = -(-(PICTURES // batch * epochs) // few)  # epochs on the tenth with as many steps
    yield {"method": method, "seed": seed, "labels": "", "what": "pre-training, CPU s", "value": round(seconds, 1)}
    size = {"crop": SHAPES_SIZE, "image_size": SHAPES_SIZE, "max_size": 4 * SHAPES_SIZE}
    for what, total, start in (
        ("fine-tuned", SHAPES_EPOCHS, {"checkpoint": str(weights), "model": None}),
        ("from scratch, equal steps", SHAPES_EPOCHS + more, {}),
    ):
        output = mine / what.replace(", ", "-").replace(" ", "-")
        common = {"data": str(tenth), "epochs": total, "seed": seed, "validate_every": total}
        run("shapes/segmentation", output, **common, **size, **start)
        row = read_csv(output / "epochs.csv")[-1]
        miou = max(float(row["miou"]), float(row["ema_miou"]))
        yield {"method": method, "seed": seed, "labels": "10 %", "what": f"{what}, mIoU", "value": round(miou, 2)}


def differences(rows: Sequence[Row]) -> Iterator[str]:
    """Mean and spread over the seeds of everything that was measured."""
    groups: dict[tuple[object, ...], list[float]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["labels"], row["what"]), []).append(float(str(row["value"])))
    for (method, labels, what), values in groups.items():
        spread = f" ({min(values):.1f} to {max(values):.1f}, {len(values)} seeds)" if len(values) > 1 else ""
        yield f"{method} · {what} · {labels or '-'} labels: {statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=("digits", "shapes"))
    parser.add_argument("--method", choices=tuple(DIGITS), default="lejepa")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=12, help="of pre-training (default 12)")
    parser.add_argument("--folder", type=Path, default=Path("runs/pretraining"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    measure = {"digits": digits, "shapes": shapes}[options.name]
    target = options.results / f"pretraining_{options.name}.csv"
    rows: list[Row] = [dict(row) for row in read_csv(target)] if target.exists() else []
    for seed in options.seeds:
        found = list(measure(options.folder, seed, options.method, options.epochs))
        rows = [row for row in rows if (row["method"], str(row["seed"])) != (options.method, str(seed))] + found
        write_csv(target, rows, {**environment(), "epochs": str(options.epochs)})
        print("\n".join(differences(found)), flush=True)
    print("\n".join(["", *differences(rows)]))


if __name__ == "__main__":
    main()
