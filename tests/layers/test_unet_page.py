"""The network of the page "Use the layers in your own network"."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = (Path(__file__).parents[2] / "docs" / "layers.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """What the page's code defines."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def test_the_loss_falls_from_the_first_step(page: dict[str, Any]) -> None:
    losses = page["losses"]
    assert losses[1] < losses[0]
    assert losses[-1] < 0.95 * losses[0]


def test_the_network_is_short(page: dict[str, Any]) -> None:
    network = PAGE[PAGE.index("class UNet") : PAGE.index("torch.manual_seed")]
    assert len([line for line in network.splitlines() if line.strip()]) <= 40


@pytest.mark.slow
def test_compiled_and_exported(page: dict[str, Any]) -> None:
    model, images = page["model"].eval(), page["images"]
    with torch.no_grad():
        expected = model(images)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(images)
        exported = torch.export.export(model, (images,)).module()(images)
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(exported, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(page: dict[str, Any], dtype: torch.dtype) -> None:
    model, images = page["model"].train(), page["images"]
    with torch.autocast("cpu", dtype):
        logits = model(images)
    logits.float().square().mean().backward()
    assert logits.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
