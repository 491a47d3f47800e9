"""`ss2d_scan` as an ONNX function of standard operators, for any batch, height, width, rank and state size.

In an exported model every scan is one node of the domain ``vmamba`` with a function of that name beside it, so any
runtime can run the file; one that has a kernel of that name uses the kernel.

A ``Scan`` takes the images one after the other, so that what belongs to an image stays in the caches. Its grid is laid
out with the steps of a line first, lines and routes beside each other. Then, for every orientation,

1. a ``Scan`` over the steps computes all lines at once from zero states, and their end states;
2. a ``Scan`` over the lines gives the state before each from the end states and the lines' whole decays;
3. a ``Scan`` over the steps lets these states decay and adds ``Σ_n c state`` to the outputs.

Nothing is divided by a decay, so any Δ is stable. Source of the recurrence: Liu et al., "VMamba", 2024.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vmamba.ops.routes import routes

DOMAIN, VERSION, OPSET = "vmamba", 1, 20

# log(1 + exp(-a)) = 2 atanh(1 / 2w) with w = 1/2 + exp(a), which is 1 / (w - p / (w - q / w)) to a relative 1.4e-6 for
# every a >= 0: Legendre's continued fraction, its 1/12 and 1/15 moved to the smallest greatest error. A third term, for
# 1e-8, would be two more passes over memory. Runtimes compute Softplus and Log one element at a time; divisions are
# vectorised.
_CONTINUED_FRACTION = (0.08329923, 0.06950208)


def function_name(pattern: str, states: int) -> str:
    """Name of the node and of its function: ``"SS2DScanCross"``.

    With one state, what does not depend on the state before is computed for all steps at once; with several, step by
    step, which takes less memory.
    """
    name = "SS2DScan" + "".join(word.capitalize() for word in pattern.split("_"))
    return name if states == 1 else f"{name}States"


def scan_function(pattern: str, states: int, single: bool = False) -> onnx.FunctionProto:
    """The function of a scan pattern, with the operands of `vmamba.ops.ss2d_scan` and the result y.

    `single` is for files that take one image at a time: without the loop over images, which some runtimes refuse
    around other loops.
    """
    graph = _Nodes("f")
    orientations = _orientations(pattern)
    constants = [graph("ReduceSum", "D", graph.ints(0), keepdims=0)]
    images = ["x"]
    for orientation in orientations:
        constants += _weights(graph, orientation)
        images.append(graph("Gather", "dbc", graph.ints(*orientation.order), axis=3))
    if single:
        squeezed = [graph("Squeeze", t, graph.ints(0)) for t in images]
        y = _image(graph, orientations, constants, squeezed, one_state=states == 1)
        graph("Unsqueeze", y, graph.ints(0))
    else:
        body = _image_body(orientations, one_state=states == 1)
        results = len(constants) + 1
        graph.several("Scan", (*constants, *images), results, body=body, num_scan_inputs=len(images))
    graph.nodes[-1].output[-1] = "y"
    opset = [helper.make_opsetid("", OPSET)]
    inputs = ["x", "dbc", "dt_weight", "A", "D", "dt_bias"]
    return helper.make_function(DOMAIN, function_name(pattern, states), inputs, ["y"], graph.nodes, opset)


@dataclass(frozen=True)
class _Orientation:
    """Routes along the same lines, as numbers in the pattern; F of them."""

    columns: bool
    forward: list[int]
    backward: list[int]
    carry: bool

    @property
    def order(self) -> list[int]:
        return self.forward + self.backward

    @property
    def label(self) -> str:
        return "columns" if self.columns else "rows"


def _orientations(pattern: str) -> list[_Orientation]:
    numbered = list(enumerate(routes(pattern)))

    def chosen(columns: bool, backward: bool) -> list[int]:
        return [k for k, route in numbered if (route.columns, route.backward) == (columns, backward)]

    carry = not numbered[0][1].per_line
    both = [_Orientation(columns, chosen(columns, False), chosen(columns, True), carry) for columns in (False, True)]
    return [orientation for orientation in both if orientation.order]


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

    def several(self, op: str, inputs: Iterable[str], results: int, **attributes: object) -> list[str]:
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

    def route(self, tensor: str, number: int, backward: bool) -> str:
        """One route of (S, G, F, C), as (S, G, 1, C); a backward one with steps and lines in opposite order."""
        if not backward:
            return self("Slice", tensor, self.ints(number), self.ints(number + 1), self.ints(2))
        axes, steps = self.ints(2, 0, 1), self.ints(1, -1, -1)
        return self("Slice", tensor, self.ints(number, -1, -1), self.ints(number + 1, *[-(2**62)] * 2), axes, steps)

    def concat(self, tensors: list[str], axis: int) -> str:
        return tensors[0] if len(tensors) == 1 else self("Concat", *tensors, axis=axis)

    def sum(self, tensors: list[str]) -> str:
        return reduce(lambda total, tensor: self("Add", total, tensor), tensors)


#: What `_weights` gives, and the numbers of axes.
_WEIGHTS = {"weight": 2, "bias": 1, "rate": 3}


def _weights(graph: _Nodes, orientation: _Orientation) -> tuple[str, str, str]:
    """Weight (F·R, F·D) and bias (F·D) that give Δ of all routes in one product, and the rates A (F, N, D)."""
    routes_ = [graph("Gather", "dt_weight", graph.ints(k), axis=0) for k in orientation.order]  # (1, D, R)
    nothing = graph("Mul", routes_[0], graph.number(0))
    diagonal = [graph.concat([w if i == j else nothing for j in range(len(routes_))], 2) for i, w in enumerate(routes_)]
    weight = graph("Squeeze", graph.concat(diagonal, 1), graph.ints(0))  # (F·D, F·R)
    order = graph.ints(*orientation.order)
    bias = graph("Reshape", graph("Gather", "dt_bias", order, axis=0), graph.ints(-1))
    rate = graph("Transpose", graph("Gather", "A", order, axis=0), perm=[0, 2, 1])
    return weight, bias, rate


# Bodies see nothing but their inputs: some runtimes know no outer values. What does not change is handed on.


def _body(graph: _Nodes, name: str, inputs: dict[str, int], outputs: dict[str, int]) -> onnx.GraphProto:
    """A body of ``Scan`` from names and ranks."""

    def declared(values: dict[str, int]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(v, TensorProto.FLOAT, [None] * rank) for v, rank in values.items()]

    return helper.make_graph(graph.nodes, name, declared(inputs), declared(outputs))


def _image_body(orientations: list[_Orientation], one_state: bool) -> onnx.GraphProto:
    """A body for one image after the other; constants and images as `_image` takes them."""
    graph = _Nodes("image_")
    constants, images = {"image_skip": 1}, {"image_x": 3}
    for orientation in orientations:
        constants |= {f"image_{orientation.label}_{name}": rank for name, rank in _WEIGHTS.items()}
        images |= {f"image_{orientation.label}_dbc": 4}
    y = _image(graph, orientations, list(constants), list(images), one_state)
    handed_on = {graph("Identity", name): rank for name, rank in constants.items()}
    return _body(graph, "image", constants | images, {**handed_on, y: 3})


def _image(
    graph: _Nodes, orientations: list[_Orientation], constants: list[str], images: list[str], one_state: bool
) -> str:
    """One image: ``D x`` and the sum over all routes, (H, W, D).

    `constants` are the sum of D, (D,), and the `_weights` of every orientation; `images` are x, (H, W, D), and for
    every orientation its part of dbc, (H, W, F, R + 2N).
    """
    skip, *weights = constants
    x, *dbc = images
    y = graph("Mul", x, skip)
    for i, orientation in enumerate(orientations):
        weight, bias, rate = weights[i * len(_WEIGHTS) : (i + 1) * len(_WEIGHTS)]
        y = graph("Add", y, _orientation(graph, orientation, x, dbc[i], weight, bias, rate, one_state))
    return y


def _orientation(
    graph: _Nodes, orientation: _Orientation, x: str, dbc: str, weight: str, bias: str, rate: str, one_state: bool
) -> str:
    """Sum over the routes of an orientation: (H, W, D) from x (H, W, D) and dbc (H, W, F, R + 2N).

    Axes: steps S, lines G, routes F (forward ones first), states N, channels D, rank R.
    """
    label, count = orientation.label, len(orientation.order)
    backward = [False] * len(orientation.forward) + [True] * len(orientation.backward)
    if not orientation.columns:
        x, dbc = graph("Transpose", x, perm=[1, 0, 2]), graph("Transpose", dbc, perm=[1, 0, 2, 3])
    x = graph("Unsqueeze", x, graph.ints(2))  # (S, G, 1, D)
    if any(backward):  # from their own start
        turned = graph.route(x, 0, True)
        x = graph.concat([turned if back else x for back in backward], 2)
        dbc = graph.concat([graph.route(dbc, i, back) for i, back in enumerate(backward)], 2)

    channels, states = graph.size(x, 3), graph.size(rate, 1)
    rank = graph("Sub", graph.size(dbc, 3), graph("Add", states, states))
    r, b, c = graph.several("Split", (dbc, graph("Concat", rank, states, states, axis=0)), 3, axis=-1)
    r = graph("Reshape", r, graph("Concat", graph.ints(-1), graph("Mul", rank, graph.ints(count)), axis=0))
    delta = _softplus(graph, graph("Gemm", r, weight, bias, transB=1))  # (S·G, F·D)
    delta = graph("Reshape", delta, graph("Concat", graph("Shape", dbc, start=0, end=3), channels, axis=0))

    step, drive = (graph("Unsqueeze", t, graph.ints(3)) for t in (delta, graph("Mul", delta, x)))  # (S, G, F, 1, D)
    b, c = (graph("Unsqueeze", t, graph.ints(4)) for t in (b, c))  # (S, G, F, N, 1)
    zero = graph("ConstantOfShape", graph("Concat", graph("Shape", delta, start=1, end=3), states, channels, axis=0))
    if one_state:
        decays = [graph("Exp", graph("Mul", step, rate))]
        driven = [graph("Mul", drive, b)]
    else:
        decays, driven = [step], [drive, b]
    constants = [] if one_state else [rate]
    *_, ends, y = graph.several(
        "Scan",
        (*constants, zero, *decays, *driven, c),
        len(constants) + 2,
        body=_steps(label, one_state),
        num_scan_inputs=len(decays) + len(driven) + 1,
    )
    if orientation.carry:
        whole = graph("Exp", graph("Mul", graph("ReduceSum", step, graph.ints(0), keepdims=0), rate))  # (G, F, N, D)
        first = graph("ConstantOfShape", graph("Shape", ends, start=1))
        _, starts = graph.several("Scan", (first, whole, ends), 2, body=_lines(label), num_scan_inputs=2)
        *_, y = graph.several(
            "Scan",
            (*constants, starts, *decays, c, y),
            len(constants) + 2,
            body=_carried(label, one_state),
            num_scan_inputs=len(decays) + 2,
        )
    y = graph("Squeeze", y, graph.ints(3))  # (S, G, F, D)
    if any(backward):
        y = graph.sum([graph.route(y, i, back) for i, back in enumerate(backward)])
        y = graph("Squeeze", y, graph.ints(2))
    else:
        y = graph("ReduceSum", y, graph.ints(2), keepdims=0)
    return y if orientation.columns else graph("Transpose", y, perm=[1, 0, 2])


def _softplus(graph: _Nodes, z: str) -> str:
    """``max(z, 0) + log(1 + exp(-|z|))``."""
    w = graph("Add", graph("Exp", graph("Abs", z)), graph.number(0.5))
    fraction = w
    for coefficient in reversed(_CONTINUED_FRACTION):
        fraction = graph("Sub", w, graph("Div", graph.number(coefficient), fraction))
    return graph("Add", graph("Relu", z), graph("Reciprocal", fraction))


def _steps(label: str, one_state: bool) -> onnx.GraphProto:
    """``h = decay h + drive``, ``y = Σ_n c h``; with several states of ``decay = exp(Δ A)`` and ``drive = Δ x b``."""
    graph = _Nodes(f"{label}_step_")
    if one_state:
        h, decay, drive, c = inputs = [graph.prefix + name for name in ("h", "decay", "drive", "c")]
        state = graph("Add", graph("Mul", h, decay), drive)
        return _body(graph, f"{label}_steps", dict.fromkeys(inputs, 4), {state: 4, graph("Mul", c, state): 4})
    rate, h, step, drive, b, c = inputs = [graph.prefix + name for name in ("rate", "h", "delta", "drive", "b", "c")]
    decayed = graph("Mul", graph("Exp", graph("Mul", step, rate)), h)
    state = graph("Add", decayed, graph("Mul", drive, b))
    y = graph("ReduceSum", graph("Mul", c, state), graph.ints(2), keepdims=1)
    ranks = dict.fromkeys(inputs, 4) | {rate: 3}
    return _body(graph, f"{label}_steps", ranks, {graph("Identity", rate): 3, state: 4, y: 4})


def _lines(label: str) -> onnx.GraphProto:
    """``start = state``, ``state = decay state + end``."""
    graph = _Nodes(f"{label}_line_")
    state, decay, end = inputs = [graph.prefix + name for name in ("state", "decay", "end")]
    after = graph("Add", graph("Mul", state, decay), end)
    return _body(graph, f"{label}_lines", dict.fromkeys(inputs, 3), {after: 3, graph("Identity", state): 3})


def _carried(label: str, one_state: bool) -> onnx.GraphProto:
    """``state = decay state``, ``y = y + Σ_n c state``; with several states of ``decay = exp(Δ A)``."""
    graph = _Nodes(f"{label}_carried_")
    if one_state:
        before, decay, c, y = inputs = [graph.prefix + name for name in ("state", "decay", "c", "y")]
        state = graph("Mul", before, decay)
        more = graph("Add", y, graph("Mul", c, state))
        return _body(graph, f"{label}_carried", dict.fromkeys(inputs, 4), {state: 4, more: 4})
    rate, before, step, c, y = inputs = [graph.prefix + name for name in ("rate", "state", "delta", "c", "y")]
    state = graph("Mul", before, graph("Exp", graph("Mul", step, rate)))
    more = graph("Add", y, graph("ReduceSum", graph("Mul", c, state), graph.ints(2), keepdims=1))
    ranks = dict.fromkeys(inputs, 4) | {rate: 3}
    return _body(graph, f"{label}_carried", ranks, {graph("Identity", rate): 3, state: 4, more: 4})
