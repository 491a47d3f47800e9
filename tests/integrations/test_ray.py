"""Prediction on a Ray cluster of two actors on this machine, one of which is killed: the same rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vmamba
from vmamba.checkpoints.saving import save_weights
from vmamba.data.sources import ImageRef
from vmamba.errors import ClusterError
from vmamba.integrations.ray import Predictor, classify_on_ray, columns_of

pytest.importorskip("ray")
IMAGES = 40


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", num_classes=3, dims=(8, 8, 8, 8), depths=(1, 1, 1, 1))
    return save_weights(model, tmp_path / "weights" / "model.safetensors")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(IMAGES):
        Image.effect_noise((40, 40), 30 + i).convert("RGB").save(folder / f"{i:02d}.png")
    (folder / "07.png").write_bytes(b"broken")
    return folder


def test_a_batch_of_either_form(weights: Path, images: Path) -> None:
    predict = Predictor(str(weights), topk=2, image_size=32)
    paths = [str(images / f"{i:02d}.png") for i in (6, 7, 8)]
    refs = [columns_of(ImageRef(path, "", path)) for path in paths]
    listed = predict({name: [ref[name] for ref in refs] for name in refs[0]})
    held = predict({"path": paths, "bytes": [Path(path).read_bytes() for path in paths]})
    assert listed["image"].tolist() == held["image"].tolist() == paths
    assert listed["predictions"].tolist() == held["predictions"].tolist()
    assert [error is None for error in listed["error"]] == [True, False, True]
    assert "07.png" in listed["error"][1]
    assert len(listed["predictions"][0]) == 2


@pytest.mark.filterwarnings("default::DeprecationWarning:ray")  # its defaults of its own
def test_a_cluster_out_of_reach_and_one_that_stops(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    import ray.data

    def fails(error: Exception) -> Any:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        return fail

    monkeypatch.setattr(ray, "init", fails(ConnectionError("timed out")))
    with pytest.raises(
        ClusterError, match=r"^no Ray cluster at head:6379: timed out; start one, or correct its address$"
    ):
        next(classify_on_ray([], {}, address="head:6379"))
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(ray.data, "from_items", fails(ray.exceptions.ActorDiedError()))
    path = str(images / "00.png")
    with pytest.raises(ClusterError, match=r"^the Ray cluster stopped: The actor died .*; go on with --resume$"):
        next(classify_on_ray([ImageRef(path, "", path)], {}))


RUN = """
import os, sys, threading, time
import vmamba.integrations.ray as on_ray
from vmamba.cli import main

if sys.argv.pop(1) == "kill":
    def kill():
        import psutil
        while True:
            for process in psutil.Process().children(recursive=True):
                try:
                    # Actors name themselves so; any fork of this process has the name in its arguments, too.
                    if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::MapWorker"):
                        time.sleep(1)
                        process.kill()
                        print("killed", file=sys.stderr)
                        return
                except psutil.Error:
                    pass
            time.sleep(0.05)
    threading.Thread(target=kill, daemon=True).start()
sys.exit(main(sys.argv[1:]))
"""


def rows(path: Path) -> dict[str, Any]:
    listed = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["image"] for row in listed}) == len(listed)
    return {row["image"]: row for row in listed}


@pytest.mark.slow
def test_two_actors_of_which_one_is_killed_give_the_rows_of_one_process(
    weights: Path, images: Path, tmp_path: Path
) -> None:
    def predict(name: str, kill: str, *options: str) -> dict[str, Any]:
        output = tmp_path / f"{name}.jsonl"
        fixed = ["--checkpoint", str(weights), "--image-size", "32", "--batch-size", "2", "--output", str(output)]
        command = [sys.executable, "-c", RUN, kill, "predict", str(images), *fixed, *options]
        # Ray's own processes yield to all others by default, and would wait for minutes beside other tests.
        environment = os.environ | {"RAY_worker_niceness": "0"}
        result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert result.returncode == 1, result.stderr[-3000:]
        assert ("killed" in result.stderr) == (kill == "kill"), result.stderr[-3000:]
        return rows(output)

    alone = predict("alone", "")
    assert len(alone) == IMAGES
    together = predict("together", "kill", "--engine", "ray", "--ray-actors", "2")
    assert together.keys() == alone.keys()
    for image, row in alone.items():
        assert together[image].get("error") == row.get("error")
        for one, other in zip(together[image].get("predictions", []), row.get("predictions", []), strict=True):
            assert one["label"] == other["label"]
            assert one["probability"] == pytest.approx(other["probability"], rel=1e-4)
