"""Contents of a pickle, described without making any of them.

A pickle is a program that names functions and calls them. Here nothing is looked up and nothing is called: containers
and tensors are recognised by name, whatever else is in there becomes an `Unread`. Sizes are never taken on trust, which
is why this is not ``torch.load``: its unpickler calls ``bytearray(n)`` and makes storages of the sizes in the file.
"""

from __future__ import annotations

import io
import mmap
import pickletools
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import IO, Any, cast

import torch

from vmamba.checkpoints.stored import Storage, StoredTensor

#: Instructions; the largest model with an optimiser needs a fiftieth.
MAX_INSTRUCTIONS = 5_000_000

#: Modules of the standard library, and functions, that files of training tools refer to; others mean an attack.
_HARMLESS_MODULES = {
    "_codecs", "abc", "argparse", "array", "collections", "copy", "copyreg", "dataclasses", "datetime", "decimal",
    "enum", "fractions", "functools", "inspect", "logging", "numbers", "operator", "pathlib", "random", "re", "string",
    "time", "types", "typing", "uuid",
}  # fmt: skip
_HARMFUL_BUILTINS = {"__import__", "breakpoint", "compile", "delattr", "eval", "exec", "input", "open", "setattr"}
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}

_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_DICT": dict, "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple, "EMPTY_SET": list,
}  # fmt: skip
_MAPPINGS = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"}


class Refused(ValueError):
    """A pickle that asks for something no checkpoint needs."""


class Name:
    """A function or class that a pickle refers to."""

    def __init__(self, name: str) -> None:
        self.name = name


class Unread(dict[Any, Any]):
    """An object of some library. Only what it holds as a mapping is kept.

    Args:
        name: Of its class.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def read_pickle(
    source: io.BytesIO | mmap.mmap, find_storage: Callable[[Sequence[Any]], tuple[Storage, torch.dtype | None]]
) -> Any:
    """The object that a pickle describes: dicts, lists, tuples, numbers, strings, `StoredTensor` and `Unread`.

    Args:
        source: Bytes in memory or a mapped file, at the start of the pickle; afterwards at its end.
        find_storage: The storage that a persistent id means, and its dtype.

    Raises:
        Refused: If it refers to something that no checkpoint needs.
        ValueError: If it is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickletools, about escapes in old-fashioned strings
            return _Reader(find_storage).read(source)
    except ValueError:
        raise
    except (LookupError, TypeError, AttributeError, ArithmeticError, EOFError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None


class _Reader:
    """The stack, the marks and the memo of one pickle."""

    def __init__(self, find_storage: Callable[[Sequence[Any]], tuple[Storage, torch.dtype | None]]) -> None:
        self.find_storage = find_storage
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def read(self, source: io.BytesIO | mmap.mmap) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], source))):
            if count == MAX_INSTRUCTIONS:
                raise ValueError(f"more than {MAX_INSTRUCTIONS} instructions")
            name = opcode.name
            if name in _LITERALS:
                self.stack.append(argument)
            elif name in _CONSTANTS:
                self.stack.append(_CONSTANTS[name]())
            elif name == "STOP":
                return self.stack.pop()
            elif name not in ("PROTO", "FRAME"):
                step = getattr(self, f"_{name.lower()}", None)
                if step is None:
                    raise ValueError(f"instruction {name}")
                step(argument)
        raise ValueError("no end")

    # Memo and marks

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    _binput = _long_binput = _put

    def _memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    _binget = _long_binget = _get

    def _mark(self, _: None) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _pop_mark(self, _: None) -> None:
        self._since_mark()

    def _pop(self, _: None) -> None:
        self.stack.pop()

    def _dup(self, _: None) -> None:
        self.stack.append(self.stack[-1])

    # Containers

    def _tuple(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def _tuple1(self, _: None) -> None:
        self.stack[-1:] = [(self.stack[-1],)]

    def _tuple2(self, _: None) -> None:
        self.stack[-2:] = [(self.stack[-2], self.stack[-1])]

    def _tuple3(self, _: None) -> None:
        self.stack[-3:] = [(self.stack[-3], self.stack[-2], self.stack[-1])]

    def _list(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append(items)

    _frozenset = _list

    def _dict(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append({})
        self._fill(items)

    def _append(self, _: None) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _appends(self, _: None) -> None:
        items = self._since_mark()
        self._extend(items)

    _additems = _appends

    def _extend(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def _setitem(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def _setitems(self, _: None) -> None:
        items = self._since_mark()
        self._fill(items)

    def _fill(self, items: list[Any]) -> None:
        if isinstance(self.stack[-1], dict):
            pairs = zip(items[::2], items[1::2], strict=True)
            self.stack[-1].update((k, v) for k, v in pairs if isinstance(k, (str, int, float)))

    # Objects

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._refer(module, name)

    def _stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise ValueError("a name that is not a string")
        self._refer(module, name)

    def _refer(self, module: str, name: str) -> None:
        module = _OLD_MODULES.get(module, module)
        top = module.partition(".")[0]
        harmful = name in _HARMFUL_BUILTINS if top == "builtins" else top not in _HARMLESS_MODULES
        if harmful and top in sys.stdlib_module_names:
            raise Refused(f"it asks to load '{module}.{name}', which no checkpoint needs")
        self.stack.append(Name(f"{module}.{name}"))

    def _reduce(self, _: None) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_described(function, arguments))

    def _newobj(self, _: None) -> None:
        self.stack.pop()
        self.stack.append(_described(self.stack.pop(), ()))

    def _newobj_ex(self, _: None) -> None:
        self.stack.pop()
        self._newobj(None)

    def _build(self, _: None) -> None:
        self.stack.pop()  # attributes, which nobody asks for

    def _binpersid(self, _: None) -> None:
        self.stack.append(self.find_storage(self.stack.pop()))


def _described(function: object, arguments: Any) -> Any:
    """The outcome of a call, where weights consist of such; `Unread` for all others."""
    name = function.name if isinstance(function, Name) else type(function).__name__
    if name in _MAPPINGS:
        return {}
    if name in _CALLS:
        return _CALLS[name](*arguments)
    if name in ("builtins.bytearray", "builtins.bytes") and arguments and isinstance(arguments[0], int):
        raise Refused(f"it asks for {arguments[0]} bytes, which no checkpoint needs")
    return Unread(name)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> StoredTensor:
    return StoredTensor(storage[0], storage[1], size, stride, offset)


def _tensor_of_dtype(storage: Any, offset: Any, size: Any, stride: Any, _: Any, __: Any, dtype: Any, *___: Any) -> Any:
    torch_dtype = getattr(torch, dtype.name.removeprefix("torch."), None) if isinstance(dtype, Name) else None
    if not isinstance(torch_dtype, torch.dtype):
        raise ValueError("a dtype that is not known")
    return StoredTensor(storage[0], torch_dtype, size, stride, offset)


#: What weights consist of.
_CALLS: dict[str, Callable[..., Any]] = {
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
    # A tensor with attributes of its own.
    "torch._tensor._rebuild_from_type_v2": lambda function, _, arguments, *__: _described(function, arguments),
}
