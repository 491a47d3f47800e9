"""Whatever a user can get wrong ends in one line, and loses nothing."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import vmamba
from support.runs import STEPS, last_state, read_rows
from vmamba.checkpoints.info import read_info
from vmamba.checkpoints.saving import save_weights
from vmamba.cli import main
from vmamba.cli.train import DIVERGED
from vmamba.tasks.classification.task import Classification

pytestmark = pytest.mark.slow

Train = Callable[..., int]


@pytest.fixture
def fails(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The one line on the error stream of a run that cannot start."""

    def run(*arguments: object, output: Path = tmp_path / "run", data: Path | None = None, status: int = 2) -> str:
        capsys.readouterr()
        assert train(output, *arguments, data=data) == status
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("vmamba: error: ")
        return line

    return run


def test_empty_class_folder(fails: Callable[..., str], own_images: Path) -> None:
    (own_images / "train" / "purple").mkdir()
    assert "train/purple: the class folder holds no images" in fails(data=own_images)


def test_class_only_in_validation(fails: Callable[..., str], own_images: Path) -> None:
    shutil.copytree(own_images / "val" / "red", own_images / "val" / "purple")
    line = fails(data=own_images)
    assert "val/purple: the class 'purple' is not among the training classes (blue, green, grey, red)" in line


def test_missing_splits(fails: Callable[..., str], own_images: Path, tmp_path: Path) -> None:
    shutil.rmtree(own_images / "val")
    line = fails(data=own_images)
    assert "has no validation split" in line
    assert "--set holdout=0.2" in line
    shutil.rmtree(own_images / "train")
    assert "has no training split" in fails(data=own_images)
    assert "no such folder" in fails(data=tmp_path / "nowhere")


def test_held_out_images(train: Train, own_images: Path, tmp_path: Path) -> None:
    """A quarter of each class is validated on, none of it is trained on."""
    shutil.rmtree(own_images / "val")
    assert train(tmp_path / "run", "--epochs", 1, "--set", "warmup_epochs=0", "holdout=0.25", data=own_images) == 0
    (row,) = read_rows(tmp_path / "run" / "epochs.csv")
    assert float(row["images"]) == 16
    assert float(row["step"]) == 48 / 8


def test_no_permission(fails: Callable[..., str], own_images: Path, tmp_path: Path, monkeypatch: Any) -> None:
    if os.getuid() == 0:  # to whom everything is permitted

        def refused(path: Any) -> Any:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

        monkeypatch.setattr(os, "scandir", refused)
    else:
        (own_images / "train").chmod(0)
    assert "Permission denied" in fails(data=own_images)


def test_no_permission_to_write(fails: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "file" in fails(output=tmp_path / "file" / "run")


def test_corrupt_images_are_skipped_and_listed(
    train: Train, fails: Callable[..., str], own_images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [own_images / "train" / "red" / "03.png", own_images / "val" / "blue" / "01.png"]
    broken[0].write_bytes(broken[0].read_bytes()[:200])
    broken[1].write_bytes(b"")
    assert train(tmp_path / "run", "--workers", 1, data=own_images) == 0
    assert "2 images could not be read and were left out" in capsys.readouterr().out
    listed = (tmp_path / "run" / "skipped.txt").read_text()
    assert all(str(path) in listed for path in broken)
    assert len(listed.splitlines()) == 2
    assert {float(row["images"]) for row in read_rows(tmp_path / "run" / "epochs.csv")} == {15.0}

    assert str(broken[0]) in fails("--strict", "--workers", 1, output=tmp_path / "strict", data=own_images)


def test_class_count_of_the_checkpoint(fails: Callable[..., str], tmp_path: Path) -> None:
    weights = save_weights(vmamba.create_model("vmamba_pico", num_classes=7), tmp_path / "seven.safetensors")
    line = fails("--checkpoint", weights, "--set", "keep_head=true", "model_options={}")
    assert "its classifier has 7 classes, the data 4" in line
    assert "no such file" in fails("--checkpoint", tmp_path / "none.pth")


def test_full_disk(train: Train, fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third checkpoint does not fit: the second is whole, and the run continues from it."""
    save, saved = torch.save, 0

    def save_until_full(content: Any, file: Any) -> None:
        nonlocal saved
        saved += 1
        if saved == 3:
            file.write(b"x" * 1000)
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_until_full)
        line = fails(output=output)
    assert "cannot save the checkpoint: No space left on device" in line
    assert "step_00000006.pt is untouched" in line
    assert sorted(p.name for p in (output / "checkpoints").iterdir()) == ["step_00000003.pt", "step_00000006.pt"]
    assert last_state(output)["position"]["step"] == 6
    assert train(output, "--resume", "auto") == 0
    assert last_state(output)["position"]["step"] == 3 * STEPS


def test_damaged_checkpoint(train: Train, fails: Callable[..., str], tmp_path: Path, capsys: Any) -> None:
    """The newest that can be read is continued; the other is told about."""
    output = tmp_path / "run"
    assert train(output, "--epochs", 2) == 0
    newest = sorted((output / "checkpoints").glob("step_*.pt"))[-1]
    newest.write_bytes(newest.read_bytes()[:5000])
    assert train(output, "--epochs", 2, "--resume", "auto") == 0
    assert f"{newest}: cannot read the checkpoint" in capsys.readouterr().out
    assert "No such file" in fails("--resume", tmp_path / "none.pt", output=tmp_path / "other")
    save_weights(vmamba.create_model("vmamba_pico"), tmp_path / "weights.safetensors")
    line = fails("--resume", tmp_path / "weights.safetensors", output=tmp_path / "other")
    assert "not the state of a training run; give weights as --checkpoint instead" in line


def test_flipped_bit_in_the_newest_checkpoint(train: Train, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "run"
    assert train(output, "--epochs", 2) == 0
    newest = sorted((output / "checkpoints").glob("step_*.pt"))[-1]
    content = bytearray(newest.read_bytes())
    weights = next(iter(torch.load(newest, weights_only=True)["model"].values())).numpy().tobytes()
    content[content.index(weights) + 5] ^= 16
    newest.write_bytes(content)
    assert train(output, "--epochs", 2, "--resume", "auto") == 0
    told = capsys.readouterr().out
    assert f"{newest}: cannot read the checkpoint: its checksum does not fit" in told
    assert "continuing from step_00000015.pt" in told


def test_damaged_tables(train: Train, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "run"
    assert train(output, "--epochs", 2) == 0
    for name in ("steps.csv", "epochs.csv"):
        path = output / name
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join([lines[0], lines[0], *lines[2:]]))
    assert train(output, "--epochs", 2, "--resume", "auto") == 0
    told = capsys.readouterr().out
    for name in ("steps.csv", "epochs.csv"):
        assert f"{output / name}: left out damaged rows (line 2); the file as it was is {name}.damaged" in told
    assert [int(row["step"]) for row in read_rows(output / "steps.csv")] == list(range(2, 2 * STEPS + 1))


def test_validation_fails_after_the_state_is_saved(
    train: Train, fails: Callable[..., str], own_images: Path, tmp_path: Path
) -> None:
    """Once the cause is mended the run goes on where it was, with the validation."""
    val = own_images / "val"
    original = {path: path.read_bytes() for path in val.rglob("*.png")}
    for path in original:
        path.write_bytes(b"")
    line = fails("--epochs", 2, output=tmp_path / "run", data=own_images)
    assert "there was no image to evaluate; epoch 1 is saved; continue with --resume auto" in line
    assert last_state(tmp_path / "run")["position"] == {
        "step": STEPS, "epoch": 1, "step_in_epoch": 0, "best": None, "to_validate": True,
    }  # fmt: skip
    for path, content in original.items():
        path.write_bytes(content)
    assert train(tmp_path / "run", "--epochs", 2, "--resume", "auto", data=own_images) == 0
    assert [int(row["epoch"]) for row in read_rows(tmp_path / "run" / "epochs.csv")] == [1, 2]


def test_names_that_are_not_utf8(train: Train, own_images: Path, tmp_path: Path, capsys: Any) -> None:
    """A broken image with such a name is reported, and the run goes on; a class may have one, too."""
    try:
        for split in ("train", "val"):
            (own_images / split / "grey").rename(own_images / split / os.fsdecode(b"gr\xe9y"))
        (own_images / "train" / "red" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert train(tmp_path / "run", "--epochs", 2, data=own_images) == 0
    assert "1 images could not be read and were left out" in capsys.readouterr().out
    assert b"caf\xe9.png" in (tmp_path / "run" / "skipped.txt").read_bytes()
    assert len(read_rows(tmp_path / "run" / "epochs.csv")) == 2
    info = read_info(tmp_path / "run" / "weights" / "model.safetensors")
    assert info is not None
    assert info.class_names == ("blue", r"gr\udce9y", "green", "red")  # as the data room spells it


def test_standard_output_is_gone(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("sys.stdout", Closed())
    assert train(tmp_path / "run", "--epochs", 2) == 0
    assert len(read_rows(tmp_path / "run" / "epochs.csv")) == 2


def test_output_on_a_read_only_file_system(
    fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    line = fails(output=tmp_path / "run")
    assert line.endswith("run: cannot write here: Read-only file system; name another folder with --output")


def test_other_run_in_the_folder(train: Train, fails: Callable[..., str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert train(output, "--epochs", 2) == 0
    before = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    assert "holds a run already; continue it with --resume auto" in fails("--epochs", 2, output=output)
    line = fails("--epochs", 2, "--resume", "auto", "--lr", "0.5", "--set", "mixup=0.1", output=output)
    assert "belongs to another recipe" in line
    assert "lr: 0.001 there, 0.5 now" in line
    assert "options.mixup: 0.8 there, 0.1 now" in line
    assert before == {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}


def test_inputs_are_never_written_over(train: Train, fails: Callable[..., str], recipe: Path, tmp_path: Path) -> None:
    """A recipe and weights that lie where the run would write its own."""
    output = tmp_path / "run"
    weights = save_weights(vmamba.create_model("vmamba_pico", num_classes=4), output / "weights" / "model.safetensors")
    before = weights.read_bytes()
    line = fails("--checkpoint", weights, "--set", "model_options={}", output=output)
    assert f"{weights} would be written over an input" in line
    own = output / "recipe.yaml"
    own.write_text("# mine\n" + recipe.read_text())
    assert main(["train", "--recipe", str(own), "--data", "nowhere", "--output", str(output)]) == 2
    assert own.read_text().startswith("# mine")
    assert weights.read_bytes() == before


def test_loss_is_not_finite(
    fails: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: Path
) -> None:
    """The report names step, files and the module where it began."""
    build = Classification.build_model

    def spoilt(task: Classification) -> Any:
        model = build(task)
        calls = 0

        def overflow(_: Any, __: Any, output: Any) -> Any:
            nonlocal calls
            calls += model.training
            return output * (float("inf") if calls >= 6 else 1)

        model.stages[1].blocks[0].mlp.register_forward_hook(overflow)
        return model

    monkeypatch.setattr(Classification, "build_model", spoilt)
    output = tmp_path / "run"
    line = fails("--set", "ema=null", output=output, status=DIVERGED)
    assert "not finite at step 6, first in the output of stages.1.blocks.0.mlp (Mlp)" in line
    assert "last good checkpoint is" in line
    assert "step_00000003.pt" in line
    found = json.loads((output / "nonfinite_step_6_process_0.json").read_text())
    assert found["step"] == 6
    assert len(found["files"]) == 8
    assert all(Path(name).is_file() for name in found["files"])
    assert last_state(output)["position"]["step"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "epoch=1"), "error: unknown field 'epoch'; do you mean 'epochs'?"),
        (("--set", "mixupp=1"), "unknown field 'mixupp'; do you mean 'mixup'?"),
        (("--set", "epochs"), "write NAME=VALUE"),
        (("--epochs", "many"), "epochs must be a whole number, got 'many'"),
        (("--epochs", "0"), "epochs must be at least 1, got 0"),
        (("--set", "precision=int8"), "precision must be one of auto, float32, bfloat16, float16, got 'int8'"),
        (("--set", "crop_scale=3"), "crop_scale must be a list of 2 numbers, got 3"),
        (
            ("--set", "warmup_epochs=3"),
            "warmup_epochs (3) must be fewer than epochs (3); for a run this short: --set warmup_epochs=0.3",
        ),
        (("--set", "task=clasification"), "unknown task 'clasification'; do you mean 'classification'?"),
        (("--set", "optimizer=adamv"), "optimizer 'adamv'"),
        (("--set", "schedule=kosine"), "schedule must be one of cosine, tanh, step, multistep, poly, got 'kosine'"),
        (("--set", "distribution=fsdp"), "fsdp needs several processes; launch with torchrun"),
        (("--batch-size", "9"), "mixup and CutMix need an even number of images per process, got 9"),
        (("--batch-size", "128"), "64 training images are fewer than one batch of 128"),
        (("--set", "grad_accum_steps=3"), "batch_size (8) cannot be divided among 1 processes × 3"),
        (("--set", "format=shards", "num_classes=4"), "no shards train/*.tar"),
        (("--model", "vmamba_pica"), "unknown model 'vmamba_pica'; do you mean 'vmamba_pico'?"),
        (("--resume", "none.pt"), "none.pt: No such file or directory; check the spelling and the current folder"),
        (("--resume", "."), ".: it is a folder; name a file, not a folder"),
        (("--set", "model=null"), "which model? give --model NAME"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_recipe(fails: Callable[..., str], arguments: tuple[str, ...], said: str, tmp_path: Path) -> None:
    assert said in fails(*arguments)
    assert not (tmp_path / "run").exists()


def test_recipe_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content, said in (
        ("list.yaml", "- 1", "a recipe is a mapping of fields, this is list"),
        ("broken.yaml", "a: [", "not YAML"),
        ("unknown.yaml", yaml.safe_dump({"epoch": 3}), "unknown field 'epoch'; do you mean 'epochs'?"),
        ("options.yaml", yaml.safe_dump({"options": {"hflop": 1}}), "unknown field 'hflop'; do you mean 'hflip'?"),
    ):
        (tmp_path / name).write_text(content)
        assert main(["train", "--recipe", str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err
    assert main(["train", "--recipe", "imagenet/vmamba_tini_s1l8"]) == 2
    assert "unknown recipe 'imagenet/vmamba_tini_s1l8'; do you mean" in capsys.readouterr().err
    assert main(["train", "--model", "vmamba_pico"]) == 2
    assert "which data? give --data FOLDER" in capsys.readouterr().err
