"""Products with packed weights against their definitions in float64, on every instruction set of this processor."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from support.golden import relative_error
from vmamba.layers import Block
from vmamba.ops import for_packed, pack_convolution, pack_linear, packed_convolution, packed_linear, use_backend

packed = pytest.importorskip("vmamba.ops.backends.native.packed")

#: Relative error in norm of one product.
TOLERANCE = {"float32": 1e-6, "bfloat16": 4e-3, "int8": 1.5e-2}


@pytest.fixture(params=packed.PRODUCT_SETS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "_isa", request.param)


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs"), [(1, 1, 1), (5, 7, 33), (29, 50, 104), (700, 17, 40), (15, 300, 9)]
)
def test_linear(precision: str, rows: int, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, inputs) + 0.5, torch.randn(outputs, inputs), torch.randn(outputs)
    residual = torch.randn(rows, outputs)
    norm = torch.randn(inputs), torch.randn(inputs)
    y = x.double() @ weight.double().T
    got = packed_linear(x, pack_linear(weight, None, precision), outputs, precision)
    assert relative_error(got, y) < TOLERANCE[precision]
    plain = pack_linear(weight, bias, precision)
    got = packed_linear(x, plain, outputs, precision, gelu=True, residual=residual)
    assert relative_error(got, F.gelu(y + bias.double()) + residual.double()) < TOLERANCE[precision]
    normalised = F.layer_norm(x.double(), [inputs], *(t.double() for t in norm), 1e-6)
    got = packed_linear(x, pack_linear(weight, bias, precision, norm), outputs, precision, eps=1e-6)
    assert relative_error(got, normalised @ weight.double().T + bias.double()) < TOLERANCE[precision]


@pytest.mark.usefixtures("isa")
def test_gelu_everywhere() -> None:
    x = torch.cat([torch.linspace(-12, 12, 20001), torch.tensor([0.0, -0.0, 1e-30, 1e30, -1e30, torch.inf])])[:, None]
    one = pack_linear(torch.ones(1, 1), None, "float32")
    got, truth = packed_linear(x, one, 1, "float32", gelu=True), F.gelu(x.double())
    assert (got - truth)[:-1].abs().div(truth[:-1].abs().clamp(min=1)).max() < 2e-7
    assert got[-1] == torch.inf
    assert packed_linear(torch.full((1, 1), torch.nan), one, 1, "float32", gelu=True).isnan().all()
    sixteenths = (torch.arange(-160, 161) / 16)[:, None]  # exact in bfloat16
    got = packed_linear(sixteenths, pack_linear(torch.ones(1, 1), None, "bfloat16"), 1, "bfloat16", gelu=True)
    assert (got - F.gelu(sixteenths.double())).abs().max() < 1.4e-4


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_normalising_keeps_its_digits(offset: float) -> None:
    """Means far from zero cancel before anything is multiplied."""
    torch.manual_seed(0)
    x, weight = torch.randn(50, 96) + offset, torch.randn(64, 96)
    truth = F.layer_norm(x.double(), [96], eps=1e-6) @ weight.double().T
    got = packed_linear(x, pack_linear(weight, None, "float32"), 64, "float32", eps=1e-6)
    assert relative_error(got, truth) < 1e-6 + 1e-7 * offset


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("geometry", [(3, 2, 1), (2, 2, 0), (4, 4, 0), (3, 1, 1)], ids=str)
@pytest.mark.parametrize("last", [True, False], ids=["channels last", "channels first"])
def test_convolution(precision: str, geometry: tuple[int, int, int], last: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 5, 9, 14), torch.randn(19, 5, *[geometry[0]] * 2), torch.randn(19)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    norm = torch.randn(19), torch.randn(19), 1e-6
    y = F.conv2d(x.double(), weight.double(), bias.double(), *geometry[1:]).permute(0, 2, 3, 1)
    weights = pack_convolution(weight, bias, precision)
    got = packed_convolution(x, weights, 19, precision, geometry)
    assert relative_error(got, y) < TOLERANCE[precision]
    got = packed_convolution(x, weights, 19, precision, geometry, norm, gelu=True)
    truth = F.gelu(F.layer_norm(y, [19], norm[0].double(), norm[1].double(), 1e-6))
    assert relative_error(got, truth) < 2 * TOLERANCE[precision]


BLOCKS = {
    "few tokens": (Block(8, d_state=2), (2, 5, 3, 8)),
    "many tokens": (Block(20, mlp_ratio=1.7, conv_bias=True), (3, 17, 23, 20)),
    "no MLP": (Block(16, mlp_ratio=0, ssm_ratio=1.5), (1, 1, 40, 16)),
    "more images than threads": (Block(8), (7, 5, 4, 8)),
    "wide": (Block(72, scan="bidirectional"), (1, 12, 9, 72)),
}


@pytest.mark.usefixtures("isa", "threads")
@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str) -> None:
    import vmamba

    torch.manual_seed(0)
    block, shape = BLOCKS[name]
    x = torch.randn(shape)
    with torch.no_grad():
        truth = block.double()(x.double())
        for precision, tolerance in (("float32", 1e-6), ("bfloat16", 5e-3), ("int8", 2e-2)):
            assert relative_error(vmamba.freeze(block.float(), precision)(x), truth) < tolerance


@pytest.mark.parametrize("precision", TOLERANCE)
def test_threads_do_not_change_results(precision: str) -> None:
    import vmamba

    frozen, x = vmamba.freeze(Block(24), precision), torch.randn(5, 6, 7, 24)
    results, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            results.append(frozen(x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("precision", TOLERANCE)
def test_operators_are_registered_as_pytorch_wants(precision: str) -> None:
    import vmamba

    x, weight = torch.randn(2, 3, 4, 8), torch.randn(6, 8)
    norm = torch.ones(6), torch.zeros(6)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(
        torch.ops.vmamba.packed_linear, (x, pack_linear(weight, None, precision), 6, precision, -1.0, True, None),
        test_utils=tests,
    )  # fmt: skip
    kernel = pack_convolution(torch.randn(6, 3, 2, 2), None, precision)
    torch.library.opcheck(
        torch.ops.vmamba.packed_convolution, (x, kernel, 6, precision, 2, 2, 0, *norm, 1e-6, False), test_utils=tests
    )
    frozen = vmamba.freeze(Block(8), precision)
    names = ["ss2d.in_proj", "ss2d.x_proj", "ss2d.out_proj", "mlp.fc1", "mlp.fc2"]
    of_scan = [frozen.tensors[f"ss2d.{name}"] for name in ("dt_proj_weight", "D", "dt_proj_bias")]
    parameters = [frozen.packed["conv.weight"], frozen.packed["conv.bias"], of_scan[0], frozen.A, *of_scan[1:]]
    layers = [frozen.packed[name] for name in names]
    torch.library.opcheck(
        torch.ops.vmamba.packed_block, (x, layers, parameters, 32, precision, "cross", [1e-5] * 3), test_utils=tests
    )


def test_operands_are_checked() -> None:
    weights = pack_linear(torch.randn(6, 8), None, "float32")
    with pytest.raises(ValueError, match=r"^packed_linear: weights of \d+ bytes do not map 9 to 6 channels in float32"):
        packed_linear(torch.randn(2, 9), weights, 6, "float32")
    with pytest.raises(ValueError, match="precision must be one of float32, bfloat16, int8, got 'int4'"):
        packed_linear(torch.randn(2, 8), weights, 6, "int4")
    with pytest.raises(TypeError, match=r"packed_linear: x must be float32 on the CPU, got torch\.float64"):
        packed_linear(torch.randn(2, 8).double(), weights, 6, "float32")
    with pytest.raises(ValueError, match=r"packed_linear: residual must be \(2, 6\), got \(2, 5\)"):
        packed_linear(torch.randn(2, 8), weights, 6, "float32", residual=torch.randn(2, 5))
    with pytest.raises(ValueError, match="packed_convolution: an image of 2×3 is smaller than the kernel"):
        packed_convolution(torch.randn(1, 1, 2, 3), weights, 6, "float32", (4, 4, 0))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_whom_they_are_for() -> None:
    x = torch.randn(1, 2, 2, 8)
    assert for_packed(x)
    assert not for_packed(x.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not for_packed(x)
    with use_backend("chunked"):
        assert not for_packed(x)
    seen: list[bool] = []

    def look(t: Tensor) -> Tensor:
        seen.append(for_packed(t))
        return t

    torch.vmap(look)(x)
    torch.func.jvp(look, (x,), (x,))
    assert seen == [False, False]
