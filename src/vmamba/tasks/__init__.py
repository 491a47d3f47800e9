"""Uses of a model: one room a task."""

from __future__ import annotations

import difflib
import reprlib
from importlib import import_module
from typing import TYPE_CHECKING

from vmamba.errors import OptionError

if TYPE_CHECKING:
    from vmamba.tasks.protocol import Task

#: Name in a recipe → module and class, imported when asked for.
TASKS: dict[str, tuple[str, str]] = {
    "classification": ("vmamba.tasks.classification.task", "Classification"),
    "detection": ("vmamba.tasks.detection.task", "Detection"),
    "lejepa": ("vmamba.tasks.pretraining.lejepa", "LeJEPA"),
    "segmentation": ("vmamba.tasks.segmentation.task", "Segmentation"),
    "simmim": ("vmamba.tasks.pretraining.simmim", "SimMIM"),
}


def task_class(name: str) -> type[Task]:
    """The task of that name.

    Raises:
        OptionError: If there is none; the nearest is suggested.
    """
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=1)
        hint = f"do you mean {near[0]!r}?" if near else f"choose one of {', '.join(TASKS)}"
        raise OptionError(f"unknown task {reprlib.repr(name)}; {hint}")
    module, attribute = TASKS[name]
    task: type[Task] = getattr(import_module(module), attribute)
    return task
