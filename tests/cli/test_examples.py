"""The end of every ``--help``: its examples parse, and all that need no network are run."""

from __future__ import annotations

import argparse
import io
import re
import shlex
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import vmamba
from support.coco import write_coco
from vmamba.checkpoints.info import Preprocessing
from vmamba.checkpoints.saving import save_weights
from vmamba.cli import _parser, main

#: Less of what takes long, by the start of a command.
LESS = {
    "analyze attention": ["--image-size", "64", "--block", "2.1"],
    "analyze activation": ["--image-size", "64"],
    "analyze cost": ["--image-size", "64"],
    "evaluate": ["--image-size", "64"],
    "export": ["--image-size", "64"],
    "detect": ["--image-size", "64"],
    "segment": ["--image-size", "64"],
}
#: Commands that train, time, serve or need the network: run by tests of their own. Their examples are parsed here.
ELSEWHERE = {
    "train": "training/test_tutorial.py",
    "tune": "tuning/test_command.py",
    "probe": "studies/test_probing.py",
    "analyze erf": "analysis/test_analyze_cli.py",
    "analyze precision": "cli/test_precision.py",
    "analyze throughput": "analysis/test_analyze_cli.py",
    "analyze scaling": "analysis/test_analyze_cli.py",
    "analyze steps": "analysis/test_steps.py",
    "analyze scans": "studies/test_scans.py",
    "serve": "integrations/test_serving.py",
    "push": "integrations/test_hub.py",
    "pull": "integrations/test_hub.py",
    "explore": "cli/test_explore.py",
    "convert": "cli/test_convert.py",
    "shapes": "docs/test_pages.py",
    "demo": "cli/test_demo.py",
}
#: What only the reader has: the network, files of the authors, large data sets.
READERS = re.compile(r"--pretrained|\.pth|imagenet|--data coco .*checkpoint")


def leaves(parser: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command with its parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, further in action.choices.items():
                yield from leaves(further, f"{name} {word}".strip())
            return
    yield name, parser


COMMANDS = dict(leaves(_parser(None)))


def examples(name: str) -> list[str]:
    """The lines below ``examples:`` of a command."""
    block = re.search(r"^examples:\n((?:  .+\n?)+)", COMMANDS[name].epilog or "", flags=re.MULTILINE)
    return [] if block is None else [line.strip() for line in block[1].splitlines()]


def arguments(line: str) -> list[str] | None:
    """Those of ``vmamba`` in an example; None where another program is called."""
    words = shlex.split(line, comments=True)
    if ">" in words:
        words = words[: words.index(">")]
    if "torchrun" in words:
        return words[words.index("vmamba") + 1 :]
    if "|" in words:
        words = words[words.index("|") + 1 :]
    return words[1:] if words[0] == "vmamba" else None


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_parse(name: str) -> None:
    found = [arguments(line) for line in examples(name)]
    assert any(words and words[: len(name.split())] == name.split() for words in found)
    for words in found:
        if words is not None:
            _parser(words).parse_args(words)


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_spelt_alike(name: str) -> None:
    """The same option means the same everywhere; who prints results can print them as JSON."""
    options = {option: action for action in COMMANDS[name]._actions for option in action.option_strings}
    assert {"--help", "--quiet", "--debug"} <= options.keys()
    for option, start in {"--device": "cpu, cuda", "--json": "print ", "--checkpoint": "", "--output": ""}.items():
        if option in options:
            assert (options[option].help or "").startswith(start), option
    silent = ("train", "tune", "serve", "push", "pull", "explore", "convert", "shapes", "demo", "completion")
    assert ("--json" in options) == (name not in silent)
    # Where nothing is computed, or by the CPU whatever else there is.
    no_model = ("models", "env", "check-data", "push", "pull", "convert", "shapes", "completion")
    on_cpu = ("export", "explore", "analyze cost", "analyze precision")
    assert ("--device" in options) == (name not in (*no_model, *on_cpu))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector: Path, segmenter: Path) -> Path:
    """What the examples take for granted, all of it tiny."""
    random = np.random.default_rng(0)
    photos = tmp_path / "folder" / "photos"
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (photos / split / label).mkdir(parents=True)
            for i in range(6):
                pixels = random.integers(0, 256, (40, 48, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(photos / split / label / f"{i}.png")
    place = photos.parent
    shutil.copytree(photos, place / "digits")
    for name in ("photo.jpg", "scan.tif", "photos/0.jpg"):
        Image.fromarray(random.integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(place / name)
    model = vmamba.create_model("vmamba_pico", num_classes=2)
    weights = place / "model.safetensors"
    save_weights(model, weights, class_names=("cat", "dog"), preprocessing=Preprocessing(image_size=64))
    for run, source in {"finetune": weights, "photos": weights, "pretrained": weights}.items() | {
        ("detection", detector),
        ("segmentation", segmenter),
    }:
        target = place / "runs" / run / "weights"
        target.mkdir(parents=True)
        for file in source.parent.glob(f"{source.stem}.*"):
            shutil.copy(file, target / f"model{file.suffix}")
    (place / "shards").mkdir()
    with tarfile.open(place / "shards" / "0.tar", "w") as tar:
        tar.add(place / "photo.jpg", "0.jpg")
    write_coco(place / "coco")
    write_coco(place / "coco", split="train")
    (place / "space.yaml").write_text("lr: {low: 1e-4, high: 1e-2, log: true}\n")
    monkeypatch.chdir(place)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ELSEWHERE])
def test_examples_run(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in examples(name):
        words = arguments(line)
        if words is None or READERS.search(line):
            continue
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"photo.jpg\n")))
        more = [word for start, extra in LESS.items() if " ".join(words).startswith(f"{start} ") for word in extra]
        if words[0] == "segment" and "--full-size" in words:
            more = ["--window", "64"]
            words[words.index("model.safetensors")] = "runs/segmentation/weights/model.safetensors"
        assert main([*words, *more]) == 0, (line, capsys.readouterr().err)
        for made in ("segments", "detections", "results.jsonl", "results.parquet"):
            target = folder / made
            shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)


def test_the_others_are_run_elsewhere() -> None:
    for name, test in ELSEWHERE.items():
        assert name in COMMANDS
        assert (Path(__file__).parents[1] / test).is_file()
