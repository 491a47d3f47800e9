"""Many images: written as they come, continued after any kill, in parts, from any source."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import vmamba
from support.commands import Fails, Run
from support.forked import Forked, module, run_forked
from support.marks import exhaustive
from support.runs import children
from vmamba.data.images import read_image
from vmamba.results.jsonl import JsonLines
from vmamba.tasks.classification.prediction import eval_transform

IMAGES = 600


@pytest.fixture
def many(tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    generator = np.random.default_rng(0)
    for i in range(IMAGES):
        path = folder / str(i % 7) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    (folder / "3" / "3.png").write_bytes(b"broken")
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    if path.is_dir():
        return pq.read_table(path).to_pylist()
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_image(path: Path) -> dict[str, Any]:
    """Rows by image, each of which must be there once."""
    listed = rows(path)
    images = {row["image"]: row for row in listed}
    assert len(images) == len(listed)
    return images


@pytest.mark.slow
@pytest.mark.parametrize(("name", "rounds"), [("rows.jsonl", 2), exhaustive("rows.parquet", 1)])
def test_killed_at_random_every_image_comes_once(
    name: str, rounds: int, run: Run, weights: Path, many: Path, tmp_path: Path
) -> None:
    options = ["--checkpoint", str(weights), "--image-size", "32", "--workers", "2", "--batch-size", "8"]
    assert run("predict", many, *options, "--output", tmp_path / "whole" / name) == 1
    output = tmp_path / "killed" / name
    command = module("vmamba", ["predict", many, *options, "--output", output, "--resume"])
    draw, kills = random.Random(0), 0
    journal = output / "_journal.jsonl" if name == "rows.parquet" else output
    for _ in range(rounds):
        process = Forked(command)
        before = journal.stat().st_size if journal.exists() else 0
        while process.poll() is None and not (journal.exists() and journal.stat().st_size > before):
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.1))
        kills += process.poll() is None
        decoding = children(process.pid) if process.poll() is None else []
        process.kill()
        process.wait()
        end = time.monotonic() + 30
        while any(map(psutil.pid_exists, decoding)):  # what decodes ends with it
            assert time.monotonic() < end
            time.sleep(0.05)
    assert kills
    assert run_forked(command).returncode == 1
    whole, killed = by_image(tmp_path / "whole" / name), by_image(output)
    assert len(whole) == IMAGES
    assert killed.keys() == whole.keys()
    for image, row in whole.items():
        assert killed[image].get("error") == row.get("error")
        for one, other in zip(killed[image].get("predictions") or [], row.get("predictions") or [], strict=True):
            assert one["label"] == other["label"]
            assert one["probability"] == pytest.approx(other["probability"], rel=1e-4)


@pytest.mark.slow
def test_terminated_a_command_keeps_its_rows(weights: Path, many: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.parquet"
    options = ["--checkpoint", str(weights), "--image-size", "64", "--output", str(output)]
    process = Forked(module("vmamba", ["predict", many, *options]))
    while not (output / "_journal.jsonl").exists() or not (output / "_journal.jsonl").stat().st_size:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (143, "vmamba: terminated\n")
    assert 0 < len(by_image(output)) < IMAGES
    assert {path.name for path in output.iterdir()} == {"part-000000.parquet"}


def test_parts_of_a_cluster_are_all_images(run: Run, weights: Path, images: Path, tmp_path: Path) -> None:
    for i in range(3):
        output = ("--output", tmp_path / f"{i}.jsonl", "--shard", f"{i}/3")
        assert run("predict", images, "--checkpoint", weights, "--image-size", 32, *output) == 0
    listed = [row["image"] for i in range(3) for row in rows(tmp_path / f"{i}.jsonl")]
    assert sorted(listed) == [str(images / f"{i}.png") for i in range(3)]


def test_results_are_never_replaced_unasked(
    run: Run, fails: Fails, weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "rows.jsonl"
    command = ("predict", images, images / "0.png", "--checkpoint", weights, "--image-size", 32, "--output", output)
    assert run(*command) == 0
    assert "3 images" in capsys.readouterr().out
    before = output.read_bytes()
    assert before.count(b"\n") == 3  # an image that is named twice is done once
    assert "rows.jsonl exists: --resume goes on with it, --overwrite replaces it" in fails(*command)
    assert run(*command, "--resume") == 0
    assert capsys.readouterr().out.startswith("0 images, 3 before")
    assert output.read_bytes() == before
    assert run(*command, "--overwrite", "--topk", 1) == 0
    assert len(rows(output)[0]["predictions"]) == 1
    capsys.readouterr()
    assert "--resume and --overwrite need --output" in fails(*command[:-2], "--resume")
    assert "--shard takes I/N" in fails(*command, "--shard", "3/3")
    for name in ("rows.csv", "vectors.npy"):
        line = fails(*command[:-1], tmp_path / name)
        assert f"{name}: results are written as .jsonl, .parquet or into a folder, not as {name[-4:]}" in line
        assert not (tmp_path / name).exists()
    assert fails("embed", *command[1:-1], output.with_suffix(".npy")).endswith("--overwrite replaces it")


def test_failures_are_rows_and_are_listed_again(
    run: Run, weights: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "broken.png").write_bytes(b"x")
    output = ("--output", tmp_path / "rows.jsonl")
    for more in ((), ("--resume",)):
        assert run("predict", images, "--checkpoint", weights, "--image-size", 32, *output, *more) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"vmamba: failed: cannot read the image {images / 'broken.png'}: ")
    failed = by_image(tmp_path / "rows.jsonl")[str(images / "broken.png")]
    assert failed["error"] in line


def test_a_full_disk_ends_the_command(
    fails: Fails, weights: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def add(self: JsonLines, row: Any) -> None:
        raise OSError(28, "No space left on device", str(self.path))

    monkeypatch.setattr(JsonLines, "add", add)
    line = fails("predict", images, "--checkpoint", weights, "--image-size", 32, "--output", tmp_path / "rows.jsonl")
    assert "rows.jsonl: No space left on device; make room on the disk" in line


@pytest.mark.parametrize("name", ["detector", "segmenter"])
def test_rows_alone(name: str, run: Run, images: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    checkpoint = request.getfixturevalue(name)
    command: list[Any] = ["detect", "--score", 0] if name == "detector" else ["segment"]
    command += [images, "--checkpoint", checkpoint, "--image-size", 64]
    for output in ("rows.jsonl", "rows.parquet"):
        assert run(*command, "--output", tmp_path / output) == 0
    (listed, parts) = by_image(tmp_path / "rows.jsonl"), by_image(tmp_path / "rows.parquet")
    assert listed.keys() == parts.keys() == {str(images / f"{i}.png") for i in range(3)}
    for image, row in listed.items():
        part = {key: value for key, value in parts[image].items() if value is not None}
        assert part.keys() == row.keys()
        if name == "detector":
            assert (row["width"], row["height"]) == read_image(image).size
            assert [d["segmentation"] for d in part["detections"]] == [d["segmentation"] for d in row["detections"]]
        else:
            assert part["labels_png"] == row["labels_png"]
    assert not list(tmp_path.glob("**/*_labels.png"))


def test_embeddings_are_what_the_classifier_sees(run: Run, weights: Path, images: Path, tmp_path: Path) -> None:
    (images / "broken.png").write_bytes(b"x")
    path = tmp_path / "embeddings.npy"
    command = ("embed", images, "--checkpoint", weights, "--image-size", 32, "--output")
    assert run(*command, path) == run(*command, tmp_path / "rows.parquet") == 1
    assert run(*command, path, "--resume") == 1
    model = vmamba.create_model("vmamba_pico", num_classes=3, checkpoint=weights).eval()
    vectors, parts = np.load(path), by_image(tmp_path / "rows.parquet")
    listed = rows(path.with_suffix(".jsonl"))
    assert len(listed) == 4
    for row in listed:
        if "error" in row:
            continue
        x = eval_transform(model, 32)(read_image(row["image"]))[None]
        with torch.no_grad():
            logits = model(x)[0]
        vector = torch.from_numpy(vectors[row["index"]])
        torch.testing.assert_close(model.head.fc(vector) if hasattr(model.head, "fc") else model.head(vector), logits)
        np.testing.assert_allclose(parts[row["image"]]["embedding"], vector, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="no such program")
def test_names_come_from_the_standard_input(weights: Path, images: Path, tmp_path: Path) -> None:
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "vmamba", "predict", "-", "--checkpoint", str(weights), "--output", str(output)]
    names = "".join(f"{images / f'{i}.png'}\n" for i in (2, 0))
    subprocess.run([*command, "--image-size", "32"], input=names, text=True, check=True)
    assert [Path(row["image"]).name for row in rows(output)] == ["2.png", "0.png"]
