"""`Immutable`: what a frozen module refuses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from vmamba.errors import FrozenError


class Immutable(nn.Module):
    """Mixed into the class of every module of a frozen model.

    Weights are handed out as copies, so that nothing done to them changes the model.
    """

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise FrozenError("a frozen model cannot be changed: change the model that it was made from, then freeze it")

    __delattr__ = register_parameter = register_buffer = register_module = add_module = _refuse
    load_state_dict = _load_from_state_dict = _refuse

    def __setattr__(self, name: str, value: Any) -> None:
        if "_locked" not in self.__dict__ or name.startswith("_is_torch"):  # the latter are marks of torch.compile
            super().__setattr__(name, value)
        elif name != "training" or value is not False:  # torch.compile sets it as it is
            self._refuse()

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        if torch.compiler.is_compiling() or not isinstance(value, Tensor):
            return value
        return read_only_copy(value)

    def train(self, mode: bool = True) -> Immutable:
        """Nothing: a frozen model stays in evaluation mode."""
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Immutable:
        for module in self.modules():
            if any(fn(tensor) is not tensor for tensor in cast(Immutable, module).own_tensors().values()):
                raise FrozenError("a frozen model cannot be moved or converted: do that to the model, then freeze it")
        return self

    def refuse_gradients(self, x: Tensor) -> None:
        """Say that there are none, where one would be cut off without a word."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise FrozenError("a frozen layer has no gradient; train the model that it was made from")

    def pack(self) -> None:
        """Prepare what is not pickled, in the attribute ``packed``."""

    def hidden_tensors(self) -> Mapping[str, Tensor]:
        """Parameters and buffers of the original that are none of this module."""
        return {}

    def buffer_names(self) -> set[str]:
        """Names of those of `own_tensors` that are no parameters."""
        return set(self._buffers)

    def own_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of the original, without those of its children."""
        own = self._parameters | self._buffers | dict(self.hidden_tensors())
        return {name: tensor for name, tensor in own.items() if tensor is not None}

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """That of the original; copies."""
        state = super().state_dict(*arguments, **options)
        for name, tensor in state.items():
            state[name] = tensor.clone()
        return state

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the original; copies that cannot be written to."""
        for path, module in self.named_modules(prefix=prefix) if recurse else [(prefix, self)]:
            own = cast(Immutable, module)
            for name, tensor in own.own_tensors().items():
                if name not in own.buffer_names():
                    yield f"{path}.{name}" if path else name, read_only_copy(tensor)

    def __repr__(self) -> str:
        if "_done" not in self.__dict__:  # a part of a model
            return super().__repr__()
        done = "; ".join(f"{count} × {what}" for what, count in self._done.items())
        precision = f" in {self._precision}" if self._precision != "float32" else ""
        lines = [f"frozen for inference{precision}: {done or 'every layer is called'}"]
        lines += [str(self._comparison)] if "_comparison" in self.__dict__ else []
        return "\n".join([*lines, super().__repr__()])

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = {name: value for name, value in self.__dict__.items() if name not in ("_locked", "packed")}
        return _restore, (getattr(type(self), "original", type(self)), state)


def read_only_copy(tensor: Tensor) -> nn.Parameter:
    """A copy of a weight for whoever asks for it; writing to it raises."""
    with torch.inference_mode():
        return nn.Parameter(tensor.detach().clone(), requires_grad=False)


def lock(module: nn.Module) -> None:
    """Make a module immutable, its operands packed."""
    if isinstance(module, Immutable):
        module.pack()
    else:
        module.__class__ = _immutable_class(type(module))  # type: ignore[arg-type]
    module.__dict__["_locked"] = True


@cache
def _immutable_class(original: type[nn.Module]) -> type[nn.Module]:
    return type(f"Frozen{original.__name__}", (Immutable, original), {"original": original})


def _restore(original: type[nn.Module], state: dict[str, Any]) -> nn.Module:
    """An immutable module that has been copied or unpickled."""
    module = original.__new__(original)
    module.__dict__.update(state)
    lock(module)
    return module
