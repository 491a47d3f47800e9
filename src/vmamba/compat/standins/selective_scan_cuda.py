"""`selective_scan_cuda`, the extension of ``state-spaces/mamba``, with our operator inside."""

from __future__ import annotations

from torch import Tensor

from vmamba.compat import extensions

__all__ = ["bwd", "fwd"]


def fwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    """[output before the gate, intermediate states], and the gated output where there is a gate `z`."""
    out, x = extensions.forward(u, delta, A, B, C, D, delta_bias, delta_softplus)
    return [out, x] if z is None else [out, x, extensions.gate(out, z)]


def bwd(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    """Gradients for (u, delta, A, B, C, D, delta_bias); with a gate, that for z, then the gated output if asked for.

    `out` is the output before the gate; the gradient for z is written into `dz` where given.
    """
    if z is None:
        return extensions.backward(u, delta, A, B, C, D, delta_bias, dout, delta_softplus)
    if out is None:
        raise ValueError("selective_scan_cuda.bwd: with a gate z, out (the output before the gate) is needed")
    dscan, gradient = extensions.gate_backward(dout, out, z)
    dz = gradient if dz is None else dz.copy_(gradient)
    grads = [*extensions.backward(u, delta, A, B, C, D, delta_bias, dscan, delta_softplus), dz]
    return [*grads, extensions.gate(out, z)] if recompute_out_z else grads
