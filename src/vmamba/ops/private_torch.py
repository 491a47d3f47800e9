"""Private names of PyTorch that VMamba uses, seen in 2.11 to 2.15, each with what happens where it is missing.

Nothing else in the package imports a private name of PyTorch. A name that a later version lacks costs speed or a
convenience, never a wrong result and never the import of the package.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

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

try:
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError:

    class TorchDispatchMode:  # type: ignore[no-redef]
        """Stands for PyTorch's class where that has moved."""

        def __init__(self) -> None:
            raise RuntimeError(f"torch {torch.__version__} has no torch.utils._python_dispatch.TorchDispatchMode")


try:
    from torch.autograd.forward_ad import _current_level  # noqa: F401 (looked up anew at each call)
    from torch.nn.modules.module import _has_any_global_hook

    _dispatch_modes = torch._C._len_torch_dispatch_stack
    _function_modes = torch._C._len_torch_function_stack
    _function_transform = torch._C._functorch.peek_interpreter_stack
except (ImportError, AttributeError):  # every layer may be observed, and is called

    def is_observed() -> bool:
        """True: no observer can be ruled out."""
        return True

else:

    def is_observed() -> bool:
        """True if anything sees single operations: a global hook, a tracer, a mode, a transform, forward-mode AD."""
        if _has_any_global_hook() or torch.jit.is_tracing():
            return True
        if torch.compiler.is_compiling():
            return False  # the compiler sees the operators and their gradients as they are
        return bool(_dispatch_modes() or _function_modes() or _function_transform() or forward_ad._current_level >= 0)


def has_hooks(layer: nn.Module) -> bool:
    """True if a hook of any kind is registered on a module, or that cannot be known."""
    try:
        return bool(
            layer._forward_hooks
            or layer._forward_pre_hooks
            or layer._backward_hooks
            or layer._backward_pre_hooks
            or layer._state_dict_hooks
            or layer._state_dict_pre_hooks
            or layer._load_state_dict_pre_hooks
            or layer._load_state_dict_post_hooks
        )
    except AttributeError:
        return True


#: True if `onednn_linear` and `onednn_linear_add` can be called. They have no gradient.
HAS_ONEDNN_LINEAR = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str = "none") -> Tensor:
    """A linear map by oneDNN of float32 on a CPU, then ``"gelu"`` (the exact one) or ``"none"``."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")


def onednn_linear_add(x: Tensor, addend: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear map by oneDNN of float32 on a CPU, plus a tensor of the result's shape."""
    return torch.ops.mkldnn._linear_pointwise.binary(x, addend, weight, bias, "add")


def constant_when_compiled(fn: Function) -> Function:
    """Let Dynamo call the function while it traces and take the result for a constant.

    What ``torch.compiler.assume_constant_result`` does, which imports Dynamo at once (two seconds).
    Where the mark means nothing, Dynamo traces the function, or breaks the graph.
    """
    fn._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return fn


def is_exporting() -> bool:
    """True while ``torch.export`` traces. Compiled code of PyTorch 2.11 takes the public function for true, too."""
    exporting: bool | None = getattr(torch.compiler, "_is_exporting_flag", None)
    return torch.compiler.is_exporting() if exporting is None else exporting


def is_exporting_triton() -> bool:
    """True while ``torch.export`` asks for operators instead of the Triton kernels that they launch."""
    tracer = sys.modules.get("torch.export._trace")  # not loaded: nothing is exported
    asked = getattr(tracer, "custom_triton_ops_decomposition_disabled", None)
    return is_exporting() if asked is None else asked()


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


try:
    from torch._C import _after_autograd_keyset, _any_requires_grad, _AutoDispatchBelowAutograd
    from torch._functorch.autograd_function import enable_single_level_autograd_function
    from torch.autograd.forward_ad import _set_fwd_grad_enabled
    from torch.autograd.function import _SingleLevelFunction
except ImportError:
    HAS_AUTOGRAD_KERNELS = False
else:
    #: True if `below_autograd` and `autograd_kernel` can be called; else operators refuse forward mode.
    HAS_AUTOGRAD_KERNELS = True


def below_autograd(op: Any) -> Callable[..., Any]:
    """The call of an operator (key set, operands) below autograd."""

    def below(keyset: Any, operands: Sequence[Any]) -> Any:
        with _AutoDispatchBelowAutograd():
            return op.redispatch(keyset & _after_autograd_keyset, *operands)

    return below


def autograd_kernel(op: Any, setup_context: Callable[..., None], backward: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel for autograd that ``register_autograd`` would make, but differentiable by `torch.func`, too.

    The arguments are those of ``torch.library.register_autograd``; the kernel takes a key set and the operands.
    """
    below = below_autograd(op)

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


def replace_autograd_kernel(library: Any, name: str, kernel: Callable[..., Any]) -> None:
    """Register a kernel for autograd, which takes a key set, in the place of the one that ``custom_op`` has registered.

    PyTorch 2.11 warns of what it is asked for.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Warning only once for all operators", category=UserWarning)
        library.impl(name, kernel, "Autograd", with_keyset=True, allow_override=True)


def inductor_packages() -> tuple[Callable[..., str], Callable[[str], Any], type[Exception]]:
    """The functions that compile and load a package of AOTInductor, and the error for a missing compiler.

    They are documented under ``torch._inductor``, whose import takes seconds.

    Raises:
        ImportError: Where PyTorch has them no longer there.
    """
    from torch._inductor import aoti_compile_and_package, aoti_load_package
    from torch._inductor.exc import InvalidCxxCompiler

    return aoti_compile_and_package, aoti_load_package, InvalidCxxCompiler


def decompositions(operators: Sequence[Any]) -> dict[Any, Callable[..., Any]]:
    """PyTorch's definitions of operators by simpler ones; none where they are elsewhere, and exporting refuses them."""
    try:
        from torch._decomp import get_decompositions
    except ImportError:
        return {}
    return dict(get_decompositions(operators))
