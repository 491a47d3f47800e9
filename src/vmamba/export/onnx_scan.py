"""`ss2d_scan` as an ONNX function of standard operators, for any batch, height, width, rank and state size.

In an exported model every scan is one node of the domain ``vmamba`` with a function of that name beside it, so any
runtime can run the file; one that has a kernel of that name uses the kernel.

The grid is laid out with the steps of a line first, lines and routes beside each other. Then, for every orientation,

1. a ``Scan`` over the steps computes all lines at once from zero states, and their end states;
2. a ``Scan`` over the lines gives the state before each from the end states and the lines' whole decays;
3. ``Σ_n c exp(A ΣΔ) start`` is added to the outputs.

Nothing is divided by a decay, so any Δ is stable. Source of the recurrence: Liu et al., "VMamba", 2024.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vmamba.ops.routes import routes

DOMAIN, VERSION, OPSET = "vmamba", 1, 20

# 2 atanh(t) = t P(t²) for t in [0, 1/3], to 1e-8: log1p(e) with t = e / (2 + e). Runtimes compute Softplus and Log one
# element at a time; multiplications and divisions are vectorised.
_ATANH = np.polynomial.chebyshev.Chebyshev.interpolate(
    lambda u: 2 * np.arctanh(np.sqrt(u)) / np.sqrt(u), 4, domain=[1e-12, 1 / 9]
).convert(kind=np.polynomial.Polynomial)


def function_name(pattern: str, states: int) -> str:
    """Name of the node and of its function: ``"SS2DScanCross"``.

    With one state, what does not depend on the state before is computed for all steps at once; with several, step by
    step, which takes less memory.
    """
    name = "SS2DScan" + "".join(word.capitalize() for word in pattern.split("_"))
    return name if states == 1 else f"{name}States"


def scan_function(pattern: str, states: int) -> onnx.FunctionProto:
    """The function of a scan pattern, with the operands of `vmamba.ops.ss2d_scan` and the result y."""
    graph = _Nodes("f")
    everything = list(enumerate(routes(pattern)))
    y = graph("Mul", "x", graph("ReduceSum", "D", graph.ints(0), keepdims=0))
    for columns in (False, True):
        chosen = [(k, route.backward) for k, route in everything if route.columns == columns]
        if chosen:
            carry = not everything[0][1].per_line
            y = graph("Add", y, _orientation(graph, chosen, columns, carry, one_state=states == 1))
    graph.nodes[-1].output[0] = "y"
    opset = [helper.make_opsetid("", OPSET)]
    inputs = ["x", "dbc", "dt_weight", "A", "D", "dt_bias"]
    return helper.make_function(DOMAIN, function_name(pattern, states), inputs, ["y"], graph.nodes, opset)


class _Nodes:
    """Nodes in the making. Calling appends one and returns the name of its first result."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self._count = 0

    def name(self) -> str:
        self._count += 1
        return f"{self.prefix}{self._count}"

    def __call__(self, op: str, *inputs: str, **attributes: object) -> str:
        return self.several(op, inputs, 1, **attributes)[0]

    def several(self, op: str, inputs: tuple[str, ...], results: int, **attributes: object) -> list[str]:
        names = [self.name() for _ in range(results)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def ints(self, *values: int) -> str:
        return self("Constant", value=numpy_helper.from_array(np.array(values, dtype=np.int64)))

    def number(self, value: float) -> str:
        return self("Constant", value=numpy_helper.from_array(np.array(value, dtype=np.float32)))

    def size(self, tensor: str, axis: int) -> str:
        """Size of an axis, as a tensor of one integer."""
        return self("Shape", tensor, start=axis, end=axis + 1)

    def flip(self, tensor: str, *axes: int) -> str:
        count = len(axes)
        starts, ends = self.ints(*[-1] * count), self.ints(*[-(2**62)] * count)
        return self("Slice", tensor, starts, ends, self.ints(*axes), self.ints(*[-1] * count))


def _orientation(graph: _Nodes, chosen: list[tuple[int, bool]], columns: bool, carry: bool, one_state: bool) -> str:
    """Sum over the routes along rows, or along columns: (B, H, W, D).

    Axes: steps S, routes F (forward ones first), batch B, lines G, states N, channels D, rank R.
    """
    forward, backward = ([k for k, back in chosen if back == which] for which in (False, True))
    order = graph.ints(*forward, *backward)

    def travel(tensor: str) -> str:
        """(S, F, B, G, C) with backward routes from their own start, from image-order (S, F, B, G, C)."""
        if not backward:
            return tensor
        if not forward:
            return graph.flip(tensor, 0, 3)
        ahead = graph("Slice", tensor, graph.ints(0), graph.ints(len(forward)), graph.ints(1))
        back = graph("Slice", tensor, graph.ints(len(forward)), graph.ints(len(chosen)), graph.ints(1))
        return graph("Concat", ahead, graph.flip(back, 0, 3), axis=1)

    steps_first = [1, 3, 0, 2, 4] if columns else [2, 3, 0, 1, 4]  # (B, H, W, F, C) → (S, F, B, G, C)
    x = graph("Expand", graph("Unsqueeze", "x", graph.ints(3)), graph.ints(1, 1, 1, len(chosen), 1))
    x = travel(graph("Transpose", x, perm=steps_first))
    dbc = travel(graph("Transpose", graph("Gather", "dbc", order, axis=3), perm=steps_first))
    rank, states = graph.size("dt_weight", 2), graph.size("A", 2)
    r, b, c = graph.several("Split", (dbc, graph("Concat", rank, states, states, axis=0)), 3, axis=-1)

    # Δ = softplus(dt_weight r + dt_bias), one matrix product for every route.
    per_route = {name: graph("Gather", name, order, axis=0) for name in ("dt_weight", "dt_bias", "A")}
    weight = graph("Transpose", per_route["dt_weight"], perm=[0, 2, 1])  # (F, R, D)
    weight = graph("Unsqueeze", weight, graph.ints(1))
    delta = graph("MatMul", r, weight)  # (S, F, B, G, D)
    delta = _softplus(graph, graph("Add", delta, graph("Unsqueeze", per_route["dt_bias"], graph.ints(1, 2))))
    rate = graph("Transpose", per_route["A"], perm=[0, 2, 1])  # (F, N, D)
    rate = graph("Unsqueeze", rate, graph.ints(1, 2))  # (F, 1, 1, N, D)

    drive = graph("Unsqueeze", graph("Mul", delta, x), graph.ints(4))  # (S, F, B, G, 1, D)
    step = graph("Unsqueeze", delta, graph.ints(4))
    b, c = (graph("Unsqueeze", t, graph.ints(5)) for t in (b, c))  # (S, F, B, G, N, 1)
    front, channels = graph("Shape", delta, start=1, end=4), graph.size(delta, 4)
    zero = graph("ConstantOfShape", graph("Concat", front, states, channels, axis=0))
    label = "columns" if columns else "rows"
    if one_state:
        decay, drive = graph("Exp", graph("Mul", step, rate)), graph("Mul", drive, b)
        ends, y = graph.several("Scan", (zero, decay, drive, c), 2, body=_steps(label), num_scan_inputs=3)
    else:
        _, ends, y = graph.several(
            "Scan", (rate, zero, step, drive, b, c), 3, body=_steps_of_states(label), num_scan_inputs=4
        )

    if carry:
        total = graph("ReduceSum", step, graph.ints(0), keepdims=0)  # (F, B, G, 1, D)
        whole = graph("Exp", graph("Mul", total, rate))  # (F, B, G, N, D)
        first = graph(
            "ConstantOfShape", graph("Concat", graph("Shape", delta, start=1, end=3), states, channels, axis=0)
        )
        _, starts = graph.several(
            "Scan",
            (first, whole, ends),
            2,
            body=_lines(label),
            num_scan_inputs=2,
            scan_input_axes=[2, 2],
            scan_output_axes=[2],
        )  # (F, B, G, N, D)
        if one_state:
            along = graph("CumSum", step, graph("Squeeze", graph.ints(0)))
            carried = graph("Mul", graph("Exp", graph("Mul", along, rate)), starts)
            y = graph("Add", y, graph("Mul", c, carried))
        else:
            none = graph("ConstantOfShape", graph("Concat", front, graph.ints(1), channels, axis=0))
            *_, more = graph.several("Scan", (rate, starts, none, step, c), 4, body=_carried(label), num_scan_inputs=2)
            y = graph("Add", y, more)
    if one_state:
        y = graph("Squeeze", y, graph.ints(4))  # (S, F, B, G, D)

    y = travel(y)  # back to image order: turning round twice changes nothing
    y = graph("ReduceSum", y, graph.ints(1), keepdims=0)  # (S, B, G, D)
    return graph("Transpose", y, perm=[1, 0, 2, 3] if columns else [1, 2, 0, 3])  # (B, H, W, D)


def _softplus(graph: _Nodes, z: str) -> str:
    """``max(z, 0) + log(1 + exp(-|z|))``."""
    e = graph("Exp", graph("Neg", graph("Abs", z)))
    t = graph("Div", e, graph("Add", e, graph.number(2)))
    u = graph("Mul", t, t)
    *lower, highest = _ATANH.coef
    p = graph.number(highest)
    for coefficient in reversed(lower):
        p = graph("Add", graph("Mul", p, u), graph.number(coefficient))
    return graph("Add", graph("Relu", z), graph("Mul", t, p))


def _body(graph: _Nodes, name: str, inputs: dict[str, int], outputs: dict[str, int]) -> onnx.GraphProto:
    """A body of ``Scan`` from names and ranks."""

    def declared(values: dict[str, int]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(v, TensorProto.FLOAT, [None] * rank) for v, rank in values.items()]

    return helper.make_graph(graph.nodes, name, declared(inputs), declared(outputs))


# Bodies see nothing but their inputs: some runtimes know no outer values. What does not change is handed on.


def _steps(label: str) -> onnx.GraphProto:
    """``h = decay h + drive``, ``y = c h``."""
    graph = _Nodes(f"{label}_step_")
    h, decay, drive, c = inputs = [f"{label}_step_{n}" for n in ("h", "decay", "drive", "c")]
    state = graph("Add", graph("Mul", h, decay), drive)
    return _body(graph, f"{label}_steps", dict.fromkeys(inputs, 5), {state: 5, graph("Mul", c, state): 5})


def _steps_of_states(label: str) -> onnx.GraphProto:
    """``h = exp(Δ A) h + Δ x b``, ``y = Σ_n c h``."""
    graph = _Nodes(f"{label}_step_")
    rate, h, step, drive, b, c = inputs = [f"{label}_step_{n}" for n in ("rate", "h", "delta", "drive", "b", "c")]
    decayed = graph("Mul", graph("Exp", graph("Mul", step, rate)), h)
    state = graph("Add", decayed, graph("Mul", drive, b))
    y = graph("ReduceSum", graph("Mul", c, state), graph.ints(3), keepdims=0)
    return _body(graph, f"{label}_steps", dict.fromkeys(inputs, 5), {graph("Identity", rate): 5, state: 5, y: 4})


def _lines(label: str) -> onnx.GraphProto:
    """``start = state``, ``state = decay state + end``."""
    graph = _Nodes(f"{label}_line_")
    state, decay, end = inputs = [f"{label}_line_{n}" for n in ("state", "decay", "end")]
    after = graph("Add", graph("Mul", state, decay), end)
    return _body(graph, f"{label}_lines", dict.fromkeys(inputs, 4), {after: 4, graph("Identity", state): 4})


def _carried(label: str) -> onnx.GraphProto:
    """``y = Σ_n c exp(A ΣΔ) start``, with the sum of Δ up to the step."""
    graph = _Nodes(f"{label}_carried_")
    rate, starts, so_far, step, c = inputs = [
        f"{label}_carried_{n}" for n in ("rate", "starts", "so_far", "delta", "c")
    ]
    along = graph("Add", so_far, step)
    state = graph("Mul", graph("Exp", graph("Mul", along, rate)), starts)
    y = graph("ReduceSum", graph("Mul", c, state), graph.ints(3), keepdims=0)
    handed_on = {graph("Identity", rate): 5, graph("Identity", starts): 5}
    return _body(graph, f"{label}_carried", dict.fromkeys(inputs, 5), {**handed_on, along: 5, y: 4})
