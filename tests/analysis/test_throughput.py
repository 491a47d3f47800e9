"""What is timed and how, not how fast it is."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import vmamba
from vmamba.analysis import alternate, measure, peak_memory
from vmamba.analysis.models import load_model
from vmamba.analysis.throughput import Timing, check, step
from vmamba.export import export
from vmamba.ops import select

pytestmark = pytest.mark.slow


def test_cases_take_turns() -> None:
    calls: list[str] = []
    timings = alternate({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3, warmup=1)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"
    assert list(timings) == ["a", "b", "c"]


def test_cases_settle() -> None:
    calls: list[str] = []
    timings = alternate({name: partial(calls.append, name) for name in "ab"}, 2, warmup=0, settle=True)
    assert "".join(calls) == "aabb" + "bbaa"
    assert set(timings) == {"a", "b"}


def test_timing_is_of_the_call() -> None:
    found = alternate({"sleep": lambda: time.sleep(0.02)}, rounds=3, warmup=0)["sleep"]
    assert 0.02 <= found.low <= found.median <= found.high <= found.slowest < 1
    assert Timing.of([1.0, 2.0, 3.0, 4.0, 5.0]) == Timing(3.0, 2.0, 4.0, 5.0)


@pytest.mark.parametrize("training", [False, True])
def test_ours_and_timms(training: bool) -> None:
    names = ["vmamba_pico", "test_convnext"]
    sizes = [(64, 96), (64, 64)]
    speeds = measure(names, sizes, 2, training=training, rounds=2, channels_last=True)
    assert [(speed.image_size, speed.model) for speed in speeds] == [(size, name) for size in sizes for name in names]
    for speed in speeds:
        assert speed.images_per_second == 2 / speed.timing.median


def test_frozen_forms() -> None:
    names = ["vmamba_pico", "vmamba_pico frozen float32", "vmamba_pico frozen int8"]
    assert [speed.model for speed in measure(names, [(64, 64)], 2, rounds=2)] == names
    assert str(load_model(names[2])).startswith("frozen for inference in int8")
    with pytest.raises(ValueError, match="unknown model 'test_convnext frozen int8'"):
        load_model("test_convnext frozen int8")


def test_exported_files(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    file = str(export(vmamba.create_model("vmamba_pico", num_classes=3), tmp_path / "model.onnx", image_size=64).path)
    speeds = measure(["vmamba_pico", file], [(64, 64)], 2, rounds=2)
    assert [speed.model for speed in speeds] == ["vmamba_pico", file]
    with pytest.raises(ValueError, match="exported files are for inference"):
        measure([file], [(64, 64)], training=True)
    with pytest.raises(ValueError, match="exported files run on the CPU, not on meta"):
        load_model(file, device="meta")


def test_a_training_step_trains() -> None:
    model, images = vmamba.create_model("vmamba_pico", num_classes=3), torch.randn(2, 3, 32, 32)
    before = model.head.fc.weight.clone()
    step(model, images, training=True)()
    assert not torch.equal(model.head.fc.weight, before)
    inference = step(model, images, training=False)
    assert not inference().requires_grad  # type: ignore[attr-defined]
    assert not model.training


def test_wrong_models_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="broken gives outputs that are not finite; nothing was timed"):
        check("broken", nn.Sequential(nn.Flatten(), nn.Softplus(beta=float("nan"))), torch.zeros(1, 3, 32, 32))
    answering = select(torch.device("cpu")).load()
    right = answering.ss2d_scan
    monkeypatch.setattr(answering, "ss2d_scan", lambda *operands: right(*operands).flip(1))
    model = vmamba.create_model("vmamba_pico").eval()
    with torch.inference_mode(), pytest.raises(ValueError, match=r"vmamba_pico is wrong by .* nothing was timed"):
        check("vmamba_pico", model, torch.randn(1, 3, 64, 64))
    with pytest.raises(ValueError, match="rounds must be at least 2"):
        measure(["vmamba_pico"], rounds=1)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's account of memory")
def test_peak_memory_grows_with_the_image() -> None:
    large, small = peak_memory("vmamba_pico", [(512, 512), (64, 64)], 1)
    assert small is not None
    assert large is not None
    activations = 4 * 128 * 128 * 24  # one float32 map of the first stage
    assert large > 4 * activations
    assert large > small
