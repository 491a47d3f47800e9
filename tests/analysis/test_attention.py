"""The rows of M, put together to the dense matrix, against the operators."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from support.golden import relative_error
from support.operands import ss2d_operands
from vmamba import VMamba, VMambaConfig
from vmamba.analysis.attention import Scan, attention_rows, block_scans, scans_of, ss2d_layers
from vmamba.ops import ss2d_scan
from vmamba.ops.routes import PATTERNS


def apply(scan: Scan, x: Tensor | None = None) -> Tensor:
    """M x + D x of one route, (H, W, D), through the dense M."""
    x = scan.x if x is None else x
    height, width = scan.grid
    y = torch.stack([(scan.row_per_channel((i, j)) * x).sum((0, 1)) for i in range(height) for j in range(width)])
    skip = scan.skip * x
    if scan.mirrored:
        skip = skip.flip(0 if scan.route.columns else 1)
    return y.view_as(x) + skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_rows_are_those_of_the_operator(pattern: str, dtype: torch.dtype) -> None:
    operands = ss2d_operands(1, 5, 7, 6, 3, 2, pattern, dtype)
    scans = scans_of(*operands, pattern)
    assert relative_error(sum(apply(scan) for scan in scans), ss2d_scan(*operands, pattern)[0]) < 1e-5
    for k, scan in enumerate(scans):  # and each route on its own, the others silenced through c and D
        x, dbc, dt_weight, A, D, dt_bias = (t.clone() for t in operands)
        others = [i for i in range(len(scans)) if i != k]
        dbc[:, :, :, others, -3:] = 0
        D[others] = 0
        assert relative_error(apply(scan), ss2d_scan(x, dbc, dt_weight, A, D, dt_bias, pattern)[0]) < 1e-5


def model(scan: str) -> VMamba:
    torch.manual_seed(0)
    return VMamba(
        VMambaConfig(num_classes=2, dims=(8, 16), depths=(1, 2), d_state=2, scan=scan, ssm_init="rand")
    ).eval()


@pytest.mark.parametrize("pattern", ["cross", "unidirectional", "bidirectional"])
def test_rows_of_a_block(pattern: str) -> None:
    net, image = model(pattern), torch.randn(1, 3, 32, 40)
    outputs: list[Tensor] = []
    layer = ss2d_layers(net)["stages.1.blocks.1"]
    layer.out_norm.register_forward_pre_hook(lambda _, arguments: outputs.append(arguments[0]))
    scans = block_scans(net, "stages.1.blocks.1", image)
    assert len(scans) == 4
    assert scans[0].grid == (4, 5)
    assert relative_error(sum(apply(scan) for scan in scans), outputs[0][0]) < 1e-5


def test_rows_of_a_cascade() -> None:
    """Rows of the input give what, normalised, the columns see; rows of that give the layer's scan."""
    net, image = model("cascade"), torch.randn(1, 3, 32, 40)
    outputs: list[Tensor] = []
    layer = ss2d_layers(net)["stages.0.blocks.0"]
    layer.out_norm.register_forward_pre_hook(lambda _, arguments: outputs.append(arguments[0]))
    rows, rows_back, columns, columns_back = block_scans(net, "stages.0.blocks.0", image)
    assert [s.name for s in (rows, rows_back, columns, columns_back)] == [
        "rows",
        "rows backward",
        "columns",
        "columns backward",
    ]
    assert relative_error(F.layer_norm(apply(rows) + apply(rows_back), (8,)), columns.x) < 1e-5
    assert relative_error(apply(columns) + apply(columns_back), outputs[0][0]) < 1e-5


def test_variants_leave_out_factors() -> None:
    scan = scans_of(*ss2d_operands(1, 3, 4, 6, 1, 2, "cross"), "cross")[0]
    query = (1, 2)
    exact, with_decay, without, decay = (
        scan.row_per_channel(query, kind) for kind in ("exact", "with_decay", "without_decay", "decay_only")
    )
    delta = torch.nn.functional.softplus(scan.low_rank @ scan.dt_weight.T + scan.dt_bias)
    torch.testing.assert_close(exact, with_decay * delta)
    torch.testing.assert_close(with_decay, without * decay)
    torch.testing.assert_close(without[0, 1], (scan.b[0, 1] * scan.c[1, 2]).expand(6))
    torch.testing.assert_close(decay[1, 2], torch.ones(6, dtype=torch.float64))
    assert (exact[1, 3:] == 0).all()  # not yet visited
    assert (exact[2] == 0).all()


def test_normalised_rows_sum_to_one() -> None:
    scans = scans_of(*ss2d_operands(1, 3, 4, 6, 2, 2, "cross"), "cross")
    rows = attention_rows(scans, (1, 1), magnitude=True, normalised=True)
    torch.testing.assert_close(rows.sum((1, 2)), torch.ones(4, dtype=torch.float64))
    values = attention_rows(scans, (1, 1), normalised=True)
    torch.testing.assert_close(values.abs().sum((1, 2)), torch.ones(4, dtype=torch.float64))
    covered = (rows > 0).sum((1, 2)).tolist()  # of 12 tokens, the 6th by rows and the 5th by columns
    assert covered == [6, 5, 7, 8]


def test_long_decays_do_not_underflow_to_nan() -> None:
    operands = ss2d_operands(1, 64, 64, 16, 2, 2, "cross", torch.float32, step=8.0)
    rows = attention_rows(scans_of(*operands, "cross"), (63, 63))
    assert rows.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 0), "exact"), r"query \(4, 0\) is outside the grid of 3×4 tokens"),
        (((0, 0), "exakt"), "unknown kind 'exakt'; choose one of exact"),
    ],
)
def test_wrong_arguments(arguments: tuple[tuple[int, int], str], message: str) -> None:
    scan = scans_of(*ss2d_operands(1, 3, 4, 6, 1, 2, "cross"), "cross")[0]
    with pytest.raises(ValueError, match=message):
        scan.row_per_channel(*arguments)  # type: ignore[arg-type]


def test_wrong_blocks() -> None:
    with pytest.raises(ValueError, match=r"no SS2D block 'stages.9'; the model has stages.0.blocks.0"):
        block_scans(model("cross"), "stages.9", torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="the model has none"):
        block_scans(torch.nn.Identity(), "stages.9", torch.zeros(1, 3, 32, 32))
