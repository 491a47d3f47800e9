"""Recipes as YAML files: those of the package, one's own, what they are based on, and overrides."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from vmamba.errors import OptionError, system_reason
from vmamba.files import require_file
from vmamba.settings import nearest
from vmamba.training.recipe import Recipe, override

#: The recipes of ``vmamba train`` where none is named: with weights to start from, and without.
FINETUNE, SCRATCH = "finetune", "scratch"
#: Bytes; the largest recipe of the package has 2000.
MAX_SIZE = 1 << 20


def list_recipes() -> list[str]:
    """Names of the recipes in the package that can be run."""
    return [name for name in _files() if not name.split("/")[-1].startswith("_")]


def load_recipe(name: str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe of the package by name, or a YAML file by path, with some values replaced.

    A recipe with the field ``base``, the name or path of another one, differs from it in the fields that it gives.

    Args:
        name: One of `list_recipes`, or a path ending in ``.yaml``.
        overrides: Field of the recipe or of its task's options → value.

    Raises:
        OptionError: For an unknown recipe, field or value, in one line with the nearest name.
    """
    path = _find(name, Path())
    values = _read(path, ())
    try:
        recipe = Recipe.of(values)
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from None
    return Recipe.of(override(values, overrides)) if overrides else recipe


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """``["epochs=3", "crop_scale=[0.5, 1]"]`` → values, each read as YAML.

    Raises:
        OptionError: If one is not NAME=VALUE.
    """
    values = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise OptionError(f"--set {setting}: write NAME=VALUE, for example --set epochs=3")
        try:
            values[name.strip().replace("-", "_")] = parse_yaml(text)
        except OptionError as error:
            raise OptionError(f"--set {setting}: {error}") from None
    return values


def parse_yaml(text: str) -> Any:
    """YAML as people mean it: ``1e-3`` is a number, ``2024-01-31`` text, a field given twice an error.

    Raises:
        OptionError: If it is not YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise OptionError(f"not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise OptionError("not a recipe: nested too deeply") from None
    except ValueError as error:  # a number that Python refuses
        raise OptionError(f"not YAML: {error}") from None


def _files() -> dict[str, Path]:
    """Every recipe of the package, those that others are based on (``_NAME``) too."""
    root = Path(str(resources.files("vmamba.recipes")))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in sorted(root.rglob("*.yaml"))}


def _find(name: str, folder: Path) -> Path:
    """The file of a name, or of a path relative to `folder`."""
    if name.endswith((".yaml", ".yml")):
        return folder / name
    files = _files()
    if name not in files:
        hint = nearest(name, list_recipes())
        raise OptionError(f"unknown recipe {reprlib.repr(name)}; {hint}, or give a path ending in .yaml")
    return files[name]


def _read(path: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """The values of a file over those of its bases."""
    try:
        require_file(path)
        if path.stat().st_size > MAX_SIZE:
            raise OptionError(f"larger than {MAX_SIZE >> 10} KB, which no recipe is")
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OptionError as error:
        raise OptionError(f"{path}: {error}") from None
    except (OSError, ValueError) as error:
        reason = system_reason(error) if isinstance(error, OSError) else error
        raise OptionError(f"{path}: cannot read the recipe: {reason}") from None
    if not isinstance(values, dict):
        raise OptionError(f"{path}: a recipe is a mapping of fields, this is {type(values).__name__}")
    name = values.pop("base", None)
    if name is None:
        return values
    if not isinstance(name, str):
        raise OptionError(f"{path}: base must be the name or path of a recipe, got {reprlib.repr(name)}")
    try:
        base = _find(name, path.parent)
    except OptionError as error:
        raise OptionError(f"{path}: base: {error}") from None
    if base.resolve() in (chain := (*above, path.resolve())):
        raise OptionError(f"{path}: base {reprlib.repr(name)} is based on this recipe itself")
    return _merge(_read(base, chain), values)


def _merge(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Field by field, and within ``options`` option by option."""
    options, changes = base.get("options"), values.get("options")
    if isinstance(options, dict) and isinstance(changes, dict):
        return {**base, **values, "options": {**options, **changes}}
    return {**base, **values}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without its surprises."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"{reprlib.repr(twice)} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    letter: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("-+0123456789"))
