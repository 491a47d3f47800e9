"""The files of a model for the page."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import vmamba
from support.golden import relative_error
from vmamba.analysis.attention import block_scans, ss2d_layers
from vmamba.analysis.erf import receptive_field
from vmamba.errors import OptionError
from vmamba.explorer.model import OperandModel, ReceptiveFieldModel, write_operand_model, write_receptive_field_model
from vmamba.ort import session

SMALL = {"dims": (8, 16, 24, 32), "depths": (1, 1, 1, 1), "num_classes": 3}


@pytest.mark.slow
def test_receptive_field_is_that_of_the_analysis(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", **SMALL).eval()
    write_receptive_field_model(model, tmp_path / "gradient.onnx", 64)
    assert all(parameter.requires_grad for parameter in model.parameters())
    images = torch.randn(1, 3, 64, 64)
    tokens = [torch.zeros(1, *grid, 1) for grid in ReceptiveFieldModel(model).grids(images)]
    tokens[-1][0, 1, 1] = 1  # the centre of 2 × 2
    feeds = {f"token{i}": token.numpy() for i, token in enumerate(tokens)}
    (gradient,) = session(tmp_path / "gradient.onnx").run(None, {"images": images.numpy(), **feeds})
    energy = torch.from_numpy(gradient)[0].abs().double().sum(0)
    assert relative_error(energy, receptive_field(model, [images]).energy) < 1e-5


def test_model_without_scans_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no classifier of SS2D layers"):
        write_operand_model(nn.Sequential(nn.Conv2d(3, 1, 1)), tmp_path / "model.onnx", 32)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"d_state": 2}, {"scan": "cascade"}])
def test_operands_are_those_of_the_analysis(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", **SMALL, **options).eval()
    images = torch.randn(1, 3, 48, 48)
    with torch.no_grad():
        logits, *operands = OperandModel(model)(images)
        torch.testing.assert_close(logits, model(images))
    for i, name in enumerate(ss2d_layers(model)):
        delta, b, c, A = operands[4 * i : 4 * i + 4]
        for k, scan in enumerate(block_scans(model, name, images)):
            expected = nn.functional.softplus(scan.low_rank @ scan.dt_weight.T + scan.dt_bias)
            torch.testing.assert_close(delta[0, :, :, k], expected)
            for got, truth in ((b[0, :, :, k], scan.b), (c[0, :, :, k], scan.c), (A[k], scan.A)):
                torch.testing.assert_close(got, truth)
