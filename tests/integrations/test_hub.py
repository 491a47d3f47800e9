"""Weights to a hub and back, over loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import vmamba
from support import hub_server
from support.runs import free_port
from vmamba.checkpoints.info import ModelInfo, Preprocessing
from vmamba.checkpoints.saving import save_weights
from vmamba.integrations.hub import model_card

SCRIPT = """
import sys, torch
from vmamba.cli import main
from vmamba.integrations.hub import from_pretrained
weights, pulled = sys.argv[1:]
assert main(["push", weights, "me/cats", "--licence", "mit", "--private"]) == 0
assert main(["pull", "me/cats", "--output", pulled]) == 0
model = from_pretrained("me/cats")
print(model.info.class_names, model.info.training["top1"])
for repo in ("me/gone", "me/empty", "not a name"):
    assert main(["pull", repo]) == 2
    try:
        from_pretrained(repo)
    except Exception as error:
        print(type(error).__name__)
assert main(["push", weights.replace(".safetensors", ".json"), "me/cats"]) == 2
"""


@pytest.mark.slow
@pytest.mark.network
def test_there_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", num_classes=2)
    path = tmp_path / "run" / "weights" / "model.safetensors"
    training = {"epochs": 3, "top1": 91.25}
    names = ["cat", "dog|<b>"]
    save_weights(model, path, class_names=names, preprocessing=Preprocessing(64), training=training)
    Image.new("RGB", (4, 4)).save(tmp_path / "run" / "curves.png")
    with hub_server.running() as hub:
        hub.repos["me/empty"] = {}
        environment = os.environ | {
            "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_none", "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1", "no_proxy": "127.0.0.1",
        }  # fmt: skip
        command = [sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "pulled")]
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        files = hub.repos["me/cats"]
    assert result.returncode == 0, result.stderr
    assert "('cat', 'dog|<b>') 91.25" in result.stdout
    errors = [line for line in result.stderr.splitlines() if line.startswith("vmamba: error: ")]
    assert [line.split(": ")[3][:25] for line in errors[:3]] == [
        "the Hub has no such repos",
        "holds no model.safetensor",
        "is no repository's name",
    ]
    assert [line for line in result.stdout.splitlines() if line.endswith("Error")] == [
        "DownloadError", "DownloadError", "OptionError",
    ]  # fmt: skip
    assert len(errors) == 4
    assert files.keys() == {"model.safetensors", "model.json", "README.md", "curves.png"}
    assert files["model.safetensors"] == path.read_bytes() == (tmp_path / "pulled" / path.name).read_bytes()
    assert hub.private == {"me/cats"}
    card = files["README.md"].decode()
    head, body = card.split("---\n")[1:]
    assert yaml.safe_load(head)["license"] == "mit"
    assert yaml.safe_load(head)["pipeline_tag"] == "image-classification"
    assert "| top1 | 91.25 |" in body
    assert "cat, dog&#124;&#60;b&#62;" in body
    assert "![curves.png](curves.png)" in body


@pytest.mark.slow
def test_no_network(tmp_path: Path) -> None:
    path = save_weights(vmamba.create_model("vmamba_pico", num_classes=2), tmp_path / "model.safetensors")
    script = """
import sys, time
from vmamba.cli import main
time.sleep = lambda seconds: None  # between the tries of huggingface_hub
assert main(["push", sys.argv[1], "me/cats"]) == main(["pull", "me/cats"]) == 2
"""
    environment = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{free_port()}", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_none",
        "no_proxy": "127.0.0.1",
    }  # fmt: skip
    command = [sys.executable, "-c", script, str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    push, pull = (line for line in result.stderr.splitlines() if line.startswith("vmamba: error: "))
    assert push.startswith("vmamba: error: me/cats: the Hub cannot be used: ")
    assert pull.startswith("vmamba: error: me/cats: the Hub cannot be reached")


def test_cards_of_every_task() -> None:
    for task in ("classification", "detection", "segmentation"):
        info = ModelInfo(task, {"dims": (8, 16)}, tuple(f"class {i}" for i in range(60)))  # type: ignore[arg-type]
        card = model_card(info, "me/model", 'a "licence"', [])
        assert yaml.safe_load(card.split("---\n")[1])["license"] == 'a "licence"'
        assert "and 10 more in `model.json`" in card
        assert "## Training" not in card
