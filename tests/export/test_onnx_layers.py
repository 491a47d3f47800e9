"""Layers between the scans as ONNX functions against PyTorch's in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from support.golden import relative_error
from support.onnx_scans import function_model
from vmamba.export.onnx import translate
from vmamba.export.onnx_layers import bias_gelu_function, depthwise_silu_function
from vmamba.ort import session

DEPTHWISE = {"x": 4, "weight": 2, "bias": 1}
GELU = {"x": 4, "bias": 1}
GRIDS = [(1, 1, 1), (2, 1, 9), (1, 7, 1), (3, 2, 2), (2, 5, 6), (0, 4, 4)]


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    channels = x.shape[3]
    kernel = weight.T.reshape(channels, 1, 3, 3)
    return F.silu(F.conv2d(x.permute(0, 3, 1, 2), kernel, bias, padding=1, groups=channels)).permute(0, 2, 3, 1)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("channels", [1, 5, 16, 51])
@pytest.mark.parametrize("layer", ["depthwise", "gelu"])
def test_any_grid(layer: str, channels: int, kernels: bool) -> None:
    if layer == "depthwise":
        model = function_model(depthwise_silu_function(), DEPTHWISE, channels=channels)
    else:
        model = function_model(bias_gelu_function(), GELU)
    run = session(model, kernels=kernels)
    for grid in GRIDS:
        operands = {"x": torch.randn(*grid, channels, dtype=torch.float64)}
        if layer == "depthwise":
            operands["weight"] = torch.randn(9, channels, dtype=torch.float64)
        operands["bias"] = torch.randn(channels, dtype=torch.float64)
        expected = convolution(**operands) if layer == "depthwise" else F.gelu(operands["x"] + operands["bias"])
        (y,) = run.run(None, {name: t.float().numpy() for name, t in operands.items()})
        assert y.shape == expected.shape
        assert np.allclose(y, expected, rtol=1e-6, atol=1e-6), grid


def test_operands_that_do_not_fit() -> None:
    x, weight, bias = (np.zeros(shape, np.float32) for shape in ((1, 3, 3, 4), (9, 4), (4,)))
    run = session(function_model(depthwise_silu_function(), DEPTHWISE, channels=4), kernels=True)
    for wrong in ({"weight": weight.T}, {"bias": bias[:3]}):
        with pytest.raises(Exception, match="the shapes of the operands do not fit together"):
            run.run(None, {"x": x, "weight": weight, "bias": bias, **wrong})
    with pytest.raises(Exception, match="the shapes of the operands do not fit together"):
        session(function_model(bias_gelu_function(), GELU), kernels=True).run(None, {"x": x, "bias": bias[:1]})


class Convolution(nn.Module):
    """Tokens (B, H, W, C) through a convolution and an activation."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.act = conv, act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


def depthwise(kernel: int = 3, **options: int) -> nn.Conv2d:
    return nn.Conv2d(4, 4, kernel, padding=kernel // 2, groups=4, **options)


JOINED = {"DepthwiseSilu", "BiasGelu"}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (Convolution(depthwise(), nn.SiLU()), {"DepthwiseSilu"}),
        (Convolution(depthwise(), nn.GELU()), set()),
        (Convolution(depthwise(5), nn.SiLU()), set()),
        (Convolution(depthwise(stride=2), nn.SiLU()), set()),
        (Convolution(nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4), nn.SiLU()), set()),
        (Convolution(nn.Conv2d(4, 4, 3, groups=4), nn.SiLU()), set()),
        (Convolution(nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.SiLU()), set()),
        (Convolution(nn.Conv2d(4, 8, 3, padding=1, groups=4), nn.SiLU()), set()),
        (nn.Sequential(nn.Linear(4, 6), nn.GELU()), {"BiasGelu"}),
        (nn.Sequential(nn.Linear(4, 1), nn.GELU()), set()),
        (nn.Sequential(nn.Linear(4, 6, bias=False), nn.GELU()), set()),
        (nn.Sequential(nn.Linear(4, 6), nn.GELU("tanh")), set()),
        (nn.Sequential(nn.Linear(4, 6), nn.SiLU()), set()),
    ],
    ids=str,
)
def test_which_layers(module: nn.Module, expected: set[str]) -> None:
    """What is not a function stays as it is; either way the file computes what the module does."""
    module, x = module.eval(), torch.randn(2, 6, 5, 4)
    file = translate(module, (x,), ["x"], ["y"])
    assert JOINED & {node.op_type for node in file.proto.graph.node} == expected
    assert {function.name for function in file.proto.functions} == expected
    for kernels in (False, True):
        (y,) = session(file.proto, kernels=kernels).run(None, {"x": x.numpy()})
        assert relative_error(torch.from_numpy(y), module(x)) < 1e-6


def test_half_precision_stays_as_it_is() -> None:
    """The functions are of float32."""
    module = nn.Sequential(Convolution(depthwise(), nn.SiLU()), nn.Linear(4, 4), nn.GELU()).half().eval()
    file = translate(module, (torch.randn(1, 4, 4, 4).half(),), ["x"], ["y"])
    assert not file.proto.functions
