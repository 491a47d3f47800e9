"""Private names of PyTorch that VMamba uses, seen in 2.15 (and in 2.11), each with what happens where it is missing.

Nothing else in the package imports a private name of PyTorch. A name that a later version lacks costs speed or a
convenience, never a wrong result and never the import of the package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch.library import CustomOpDef

Function = TypeVar("Function", bound=Callable[..., Any])

try:
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
except ImportError:  # compiled graphs hold our operators instead of the kernels that these launch
    FakeTensor = FunctionalTensor = FunctionalTensorMode = None  # type: ignore[assignment, misc]

try:
    from torch import _disable_dynamo as disable_dynamo  # torch.compiler.disable, which imports Dynamo at once
except ImportError:

    def disable_dynamo(fn: Function) -> Function:  # type: ignore[no-redef]
        """Leave the function as it is: Dynamo may try to compile it and give up."""
        return fn


try:
    from torch._VF import _unpack_dual as unpack_dual  # a quarter of the time
except ImportError:
    from torch.autograd.forward_ad import unpack_dual  # type: ignore[assignment]  # noqa: F401


def constant_when_compiled(fn: Function) -> Function:
    """Let Dynamo call the function while it traces and take the result for a constant.

    What ``torch.compiler.assume_constant_result`` does, which imports Dynamo at once (two seconds).
    Where the mark means nothing, Dynamo traces the function, or breaks the graph.
    """
    fn._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return fn


def is_exporting_triton() -> bool:
    """True while ``torch.export`` asks for operators instead of the Triton kernels that they launch."""
    tracer = sys.modules.get("torch.export._trace")  # not loaded: nothing is exported
    asked = getattr(tracer, "custom_triton_ops_decomposition_disabled", None)
    return torch.compiler.is_exporting() if asked is None else asked()


def register_cache_key(operator: str, kernels: Iterable[Any]) -> None:
    """Put the sources of kernels into the keys of AOTAutograd's cache for graphs with an operator, ``"vmamba::name"``.

    What ``torch.library.triton_op`` does for the kernels that it finds in its function. Where it is missing, graphs of
    the cache outlive an edit of the kernels until the cache is emptied.
    """
    try:
        from torch._library.triton import triton_ops_to_kernels
    except ImportError:
        return
    triton_ops_to_kernels[operator] = kernels  # type: ignore[assignment]


def is_known(condition: Any) -> bool:
    """Truth of a comparison of sizes; False where it depends on sizes that are only known at run time."""
    if isinstance(condition, bool) and not torch.compiler.is_dynamo_compiling():
        return condition
    try:
        from torch.fx.experimental.symbolic_shapes import guard_or_false  # loaded already, where sizes are symbols
    except ImportError:
        return bool(condition)  # refuses to compile for such sizes
    return guard_or_false(condition)


def below_autograd(op: Any) -> Callable[..., Any] | None:
    """What runs an operator, given a key set and its operands, once autograd has looked on; None where names miss."""
    try:
        from torch._C import _after_autograd_keyset, _AutoDispatchBelowAutograd
    except ImportError:
        return None

    def below(keyset: Any, operands: Sequence[Any]) -> Any:
        with _AutoDispatchBelowAutograd():
            return op.redispatch(keyset & _after_autograd_keyset, *operands)

    return below


def autograd_kernel(
    operator: CustomOpDef, op: Any, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """What runs an operator where autograd looks on, as ``register_autograd`` gives it, and within `torch.func`, too.

    The arguments are those of ``torch.library.register_autograd``; the kernel takes a key set and the operands. Without
    the private names `torch.func` refuses to differentiate the operator.
    """
    try:
        from torch._C import _any_requires_grad
        from torch._functorch.autograd_function import enable_single_level_autograd_function
        from torch.autograd.forward_ad import _set_fwd_grad_enabled
        from torch.autograd.function import _SingleLevelFunction
    except ImportError:
        run_below = None
    else:
        run_below = below_autograd(op)
    if run_below is None:
        operator.register_autograd(backward, setup_context=setup_context)
        return torch.library.get_kernel(op, "AutogradCPU").call_boxed
    below = run_below

    class Derivative(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *operands: Any) -> Any:
            with torch.enable_grad(), _set_fwd_grad_enabled(True):  # for the levels of torch.func below this one
                output = below(keyset, operands)
            setup_context(ctx, operands, output)
            return output

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return None, *backward(ctx, *gradients)

    def kernel(keyset: Any, *operands: Any) -> Any:
        if torch.is_grad_enabled() and _any_requires_grad(*operands):
            with enable_single_level_autograd_function():
                return Derivative.apply(keyset, *operands)  # type: ignore[attr-defined]
        return below(keyset, operands)

    return kernel
