"""Every model by name, and what the released ones leave out, as one ONNX file for any batch and size.

The default tiny one and pico are exported whole, the other tiny ones with one block in each stage: more are more nodes
of the same kind. Nano, small and base models are these with more blocks or wider ones, and are compared with them;
`make test-exhaustive` exports them, too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import vmamba
from support.golden import relative_error
from support.marks import exhaustive
from vmamba.export import export
from vmamba.model.variants import VARIANTS
from vmamba.ort import runner

pytestmark = pytest.mark.slow

# The last map is 1 × 1, 1 × 2, 2 × 1, … 12 × 2 tokens.
SHAPES = [
    (1, 3, 32, 32),
    (2, 3, 33, 40),
    (1, 3, 64, 32),
    (3, 3, 45, 64),
    (1, 3, 65, 97),
    (1, 3, 96, 96),
    (1, 3, 64, 160),
    (1, 3, 384, 64),
]
SHALLOW = {"depths": (1, 1, 1, 1)}
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("vmamba_tiny_s1l8", "vmamba_pico")),
    *((name, SHALLOW) for name in ("vanilla_vmamba_tiny", "vmamba_tiny_s2l5")),
    ("vmamba_pico", {"d_state": 16, "gate": True}),
]
#: The other models, and the one of the same blocks.
LARGER = {
    "vanilla_vmamba_small": "vanilla_vmamba_tiny",
    "vanilla_vmamba_base": "vanilla_vmamba_tiny",
    "vmamba_small_s2l15": "vmamba_tiny_s2l5",
    "vmamba_base_s2l15": "vmamba_tiny_s2l5",
    "vmamba_nano": "vmamba_pico",
    "vmamba_small_s1l20": "vmamba_tiny_s1l8",
    "vmamba_base_s1l20": "vmamba_tiny_s1l8",
}


def test_the_cases_are_all_models() -> None:
    assert {name for name, _ in CASES} | LARGER.keys() == set(vmamba.list_models())
    for larger, name in LARGER.items():
        other = VARIANTS[name].config
        same = {"dims": other.dims, "depths": other.depths, "drop_path_rate": other.drop_path_rate}
        assert replace(VARIANTS[larger].config, **same) == other


@pytest.mark.parametrize(("name", "overrides"), [*CASES, *(exhaustive(name, {}) for name in LARGER)])
def test_one_file(name: str, overrides: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vmamba.create_model(name, **overrides).eval()
    exported = export(model, tmp_path / "model.onnx", image_size=64)
    assert exported.error < 1e-5
    assert exported.nodes <= max(400, 20 * sum(model.config.depths))  # 17 or 18 a block in models of many
    onnx.checker.check_model(exported.path, full_check=True)
    run = runner(exported.path, kernels=False)
    for shape in SHAPES:
        images = torch.randn(shape)
        with torch.no_grad():
            assert relative_error(run(images)[0], model(images)) < 1e-5, shape
