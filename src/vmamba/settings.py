"""Settings that a person writes, in YAML or as keywords: typed, bounded, wrong ones refused in one line."""

from __future__ import annotations

import difflib
import os
import reprlib
import types
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Strict, ValidationError
from pydantic_core import ErrorDetails

from vmamba.errors import OptionError

S = TypeVar("S", bound="Settings")


def _text(value: Any) -> Any:
    if type(value) in (int, float):
        return str(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


#: Text that may be written like a number, as the name of a folder is, or given as a path.
Text = Annotated[str, BeforeValidator(_text)]
#: Two numbers, and several: YAML has lists.
Pair = Annotated[tuple[float, float], Strict(False)]
Numbers = Annotated[tuple[float, ...], Strict(False)]
Integers = Annotated[tuple[int, ...], Strict(False)]


class Settings(BaseModel):
    """Base of settings: a frozen pydantic model with strict types, whose errors are a single line.

    Raises:
        OptionError: For an unknown name (the nearest is suggested), or a value of the wrong type or out of bounds.
    """

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    if not TYPE_CHECKING:  # checkers are to see the fields as keywords

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise OptionError(_explain(error.errors(include_url=False)[0], type(self))) from None

    @classmethod
    def of(cls: type[S], values: Mapping[Any, Any]) -> S:
        """Settings of a mapping, as YAML or JSON have it."""
        for name in values:
            if not isinstance(name, str):
                raise OptionError(f"unknown field {reprlib.repr(name)}; {nearest(name, cls.names())}")
        return cls(**values)

    def replace(self: S, **changes: Any) -> S:
        """A copy with some values changed, validated again."""
        return type(self)(**{**dict(self), **changes})

    @classmethod
    def names(cls) -> list[str]:
        """Names of the fields, in order."""
        return list(cls.model_fields)


def nearest(name: object, known: Iterable[str]) -> str:
    """A hint what may be meant by an unknown name."""
    known = list(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    if near:
        return f"do you mean {near[0]!r}?"
    return f"choose one of {', '.join(known[:10])}{' …' if len(known) > 10 else ''}"


def _explain(error: ErrorDetails, settings: type[Settings]) -> str:
    """An error of pydantic as a line."""
    name = str(error["loc"][0]) if error["loc"] else ""
    context = error.get("ctx", {})
    if error["type"] == "extra_forbidden":
        return f"unknown field {reprlib.repr(name)}; {nearest(name, settings.names())}"
    if error["type"] == "value_error":  # of a validator, which says all
        return str(context["error"])
    got = reprlib.repr(error["input"])
    for bound, words in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
        if bound in context:
            return f"{name} must be {words} {context[bound]}, got {got}"
    if error["type"] == "finite_number":
        return f"{name} must be a finite number, got {got}"
    if name not in settings.model_fields:
        return f"{name}: {error['msg']}"
    if len(error["loc"]) > 1 and error["type"] != "missing":
        got = f"{got} in it"
    elif error["type"] == "missing":
        got = "fewer"
    return f"{name} must be {_describe(settings.model_fields[name].annotation)}, got {got}"


def _describe(annotation: Any, plural: bool = False) -> str:
    """A type in words: ``tuple[float, float]`` is "a list of 2 numbers"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _describe(arguments[0], plural)
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(kind, plural) for kind in arguments)
    if origin is tuple:
        number = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        return f"a list of {number}{_describe(arguments[0], plural=True)}"
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    one, several = _WORDS.get(origin or annotation, ("a value", "values"))
    return several if plural else one


_WORDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "text"),
    bool: ("true or false", "true or false"),
    dict: ("a mapping", "mappings"),
    types.NoneType: ("null", "null"),
}
