"""Pre-training without labels on the engine: killed and continued, on two processes, and used afterwards."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from support.marks import exhaustive
from support.runs import STEPS, assert_identical, last_state, losses, read_rows, tensors, wait_for_step
from vmamba.cli import main
from vmamba.model.variants import VARIANTS
from vmamba.settings import Settings
from vmamba.tasks.pretraining.lejepa import LeJEPA
from vmamba.tasks.pretraining.options import LeJEPAOptions
from vmamba.tasks.protocol import Job
from vmamba.zoo import model_from_checkpoint

pytestmark = pytest.mark.slow

Train = Callable[..., int]
TWO = ("--standalone", "--nproc-per-node", 2)
#: Of the projector where its layers are sharded one by one, as those of real ones are.
WIDE = 512
TINY = {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
METHODS: dict[str, dict[str, Any]] = {
    "lejepa": {"global_views": 1, "local_views": 1, "hidden": 32, "embedding": 16, "directions": 64},
    "lejepa_dense": {"hidden": 32, "embedding": 16, "directions": 64, "points": 4},
    "simmim": {},
}


def settings(path: Path, method: str, **changes: Any) -> Path:
    """A recipe file of three epochs of eight steps."""
    values = {
        "base": f"pretrain/{method}", "model": "vmamba_pico", "model_options": TINY, "epochs": 3, "batch_size": 8,
        "workers": 0, "save_every": 3, "log_every": 1, "ema": 0.9,
        "options": {"image_size": 32, **METHODS[method]}, **changes,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("method", ["simmim", exhaustive("lejepa"), "lejepa_dense"])  # the last two have all in common
def test_killed(train: Train, launch: Any, tmp_path: Path, method: str) -> None:
    """By the signal that nothing can catch; continued, it ends bit for bit as without."""
    recipe = settings(tmp_path / "tiny.yaml", method, model_options={**TINY, "drop_path_rate": 0.2})
    assert train(tmp_path / "whole", "--recipe", recipe) == 0
    process = launch(tmp_path / "run", "--recipe", recipe, "--workers", 1)
    wait_for_step(process, tmp_path / "run", STEPS + 5)
    process.kill()
    process.wait()
    assert 0 < last_state(tmp_path / "run")["position"]["step"] < 3 * STEPS
    assert train(tmp_path / "run", "--recipe", recipe, "--resume", "auto") == 0
    assert_identical(last_state(tmp_path / "run"), last_state(tmp_path / "whole"))
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@pytest.fixture(scope="module")
def alone(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of LeJEPA in one process; the layers of its projector are large enough to be sharded one by one."""
    folder = tmp_path_factory.mktemp("alone")
    options = {"image_size": 32, **METHODS["lejepa"], "hidden": WIDE}
    recipe = settings(folder / "tiny.yaml", "lejepa", epochs=2, ema=None, options=options)
    command = ["train", "--recipe", recipe, "--data", images, "--output", folder / "run", "--device", "cpu"]
    assert main([str(word) for word in command]) == 0
    return folder


def assert_same_run(output: Path, alone: Path) -> None:
    """Losses, weights and the optimiser's moments are those of one process, but for the order of sums."""
    assert len(losses(output)) == 2 * STEPS
    assert losses(output) == pytest.approx(losses(alone / "run"), rel=2e-3)
    state, truth = last_state(output), last_state(alone / "run")
    # Where a gradient is nothing but rounding, AdamW goes either way: at most 0.03 apart in all these steps.
    for part, atol in (("model", 0.003), ("optimizer", 0.01)):
        mine, same = tensors(state[part]), tensors(truth[part])
        assert mine.keys() == same.keys()
        for name, weights in mine.items():
            torch.testing.assert_close(weights, same[name], rtol=0.02, atol=atol, msg=name)
    assert state["model"]["projector.3.weight"].shape == (WIDE, WIDE)
    row, other = (read_rows(path / "epochs.csv")[-1] for path in (output, alone / "run"))
    assert row["images"] == other["images"] == "16"
    assert float(row["effective_rank"]) == pytest.approx(float(other["effective_rank"]), rel=1e-2)


def test_two_processes(launch: Any, alone: Path, tmp_path: Path) -> None:
    """The statistic of the global batch, and its gradient, are those of one process."""
    process = launch(tmp_path / "run", "--recipe", alone / "tiny.yaml", torchrun=TWO)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, f"{out}\n{err}"
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.exhaustive
def test_sharded(launch: Any, alone: Path, tmp_path: Path) -> None:
    """FSDP, the projector's layers too: stopped, and continued with as many processes, it is the same run."""
    arguments = ("--recipe", alone / "tiny.yaml", "--set", "distribution=fsdp")
    process = launch(tmp_path / "run", *arguments, torchrun=TWO)
    wait_for_step(process, tmp_path / "run", 5)
    process.terminate()
    process.communicate(timeout=60)
    assert 5 <= last_state(tmp_path / "run")["position"]["step"] < 2 * STEPS
    process = launch(tmp_path / "run", *arguments, "--resume", "auto", torchrun=TWO)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, f"{out}\n{err}"
    assert_same_run(tmp_path / "run", alone)


@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision(train: Train, tmp_path: Path, method: str) -> None:
    """bfloat16 from the first step to the weights that are left: near float32, other than float32, kept in float32."""
    recipe = settings(tmp_path / "tiny.yaml", method, epochs=2)
    runs = [tmp_path / precision for precision in ("float32", "bfloat16")]
    for run in runs:
        assert train(run, "--recipe", recipe, "--set", f"precision={run.name}") == 0
    exact, mixed = map(losses, runs)
    assert mixed != exact
    assert mixed == pytest.approx(exact, rel=0.05)
    floats = [tensor for tensor in tensors(last_state(runs[1])).values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floats} == {torch.float32}
    model = model_from_checkpoint(runs[1] / "weights" / "model.safetensors")
    assert all(p.isfinite().all() for p in model.parameters())
    assert float(read_rows(runs[1] / "epochs.csv")[-1]["effective_rank"]) >= 1


def test_weights_serve_other_tasks(train: Train, images: Path, tmp_path: Path) -> None:
    """The backbone alone is written; a classifier starts from it, as a linear probe where there are few labels."""
    recipe = settings(tmp_path / "tiny.yaml", "lejepa", epochs=1, warmup_epochs=0)
    assert train(tmp_path / "run", "--recipe", recipe) == 0
    weights = tmp_path / "run" / "weights" / "model.safetensors"
    model = model_from_checkpoint(weights)
    assert model.num_classes == 0
    assert (tmp_path / "run" / "curves.png").is_file()
    assert {"effective_rank", "knn", "ema_effective_rank"} <= read_rows(tmp_path / "run" / "epochs.csv")[0].keys()
    command = ("--recipe", "finetune/few_labels", "--checkpoint", weights, "--epochs", 1, "--batch-size", 8)
    still = ("--set", "warmup_epochs=0", "lr=0", "min_lr=0", "warmup_lr=0", "ema=null")
    assert train(tmp_path / "fine", *command, *still) == 0
    tuned = model_from_checkpoint(tmp_path / "fine" / "weights" / "model.safetensors")
    assert tuned.num_classes == 4
    assert float(read_rows(tmp_path / "fine" / "epochs.csv")[-1]["top1"]) > 60  # at a rate of 0, by the probe alone
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tuned.state_dict()[name]), name


@pytest.mark.parametrize("name", [name for name in VARIANTS if "base" not in name and "small" not in name])
def test_every_kind_of_model(images: Path, name: str) -> None:
    job = Job(data=str(images), model=name, batch_size=2, workers=0)
    options: Settings = LeJEPAOptions(image_size=32, **METHODS["lejepa"])
    task = LeJEPA(job, options)  # type: ignore[arg-type]
    task.setup()
    model = task.build_model()
    losses = task.loss(model, next(iter(task.train_loader().batches(0))))
    losses["loss"].backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert all(name.startswith("backbone.") for name in model.no_weight_decay())  # type: ignore[operator]
