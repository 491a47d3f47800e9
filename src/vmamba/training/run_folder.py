"""The folder of a run: one process at a time writes to it."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from vmamba.errors import CheckpointError, OptionError
from vmamba.files import lock, remove_leftovers, require_file
from vmamba.terminal import printable
from vmamba.training.checkpoints import Checkpoints
from vmamba.training.recipe import Recipe, differences


class RunFolder:
    """The folder in which a run leaves everything.

    Attributes:
        path: The folder; made when it is locked.
        checkpoints: Those in it.

    Args:
        path: See above.
        keep: How many of the newest checkpoints to keep.
        patience: Seconds to wait for another process that is about to leave the folder.
    """

    def __init__(self, path: Path, keep: int, patience: float = 0) -> None:
        self.path, self.patience = path, patience
        self.checkpoints = Checkpoints(path / "checkpoints", keep)

    def check(self, resume: str | None) -> None:
        """Look before anything long is begun; nothing is written where the folder does not exist.

        Raises:
            OptionError: If the folder is in use, cannot be written to, or holds a run that is not to be continued.
            OSError: If the checkpoint to continue from is not there, or no file.
        """
        if resume not in (None, "auto"):
            require_file(str(resume))
        if self.path.exists():
            with self.locked():
                self._refuse_other_run(resume)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes out, and remove what killed ones have left.

        Raises:
            OptionError: If another process is in, or the folder cannot be written to.
        """
        in_use = f"{self.path}: another vmamba train is writing here; wait for it, or name another --output"
        with ExitStack() as held:
            try:
                held.enter_context(lock(self.path / ".lock", in_use, self.patience))
            except OSError as error:
                reason = error.strerror or error
                raise OptionError(
                    f"{self.path}: cannot write here: {reason}; name another folder with --output"
                ) from None
            remove_leftovers(self.path)
            self.checkpoints.remove_leftovers()
            yield

    def read(self, resume: str | None, recipe: Recipe, say: Callable[[str], None]) -> dict[str, Any] | None:
        """The content of the checkpoint to continue from; None to begin.

        Args:
            resume: ``"auto"`` for the newest checkpoint where there is one, a path, or None.
            recipe: Of the run; the checkpoint's must be the same in all that decides what is computed.
            say: Called with a line for a person where newer checkpoints are damaged.

        Raises:
            OptionError: If the folder holds a run that is not to be continued.
            CheckpointError: If there is no readable checkpoint, or it belongs to another recipe.
        """
        self._refuse_other_run(resume)
        if resume is None:
            return None
        if resume == "auto":
            newest = self.checkpoints.newest()
            if newest is None:
                return None
            path, content, problems = newest
            for problem in problems:
                say(f"{problem}; continuing from {path.name}")
        else:
            path = Path(resume)
            content = Checkpoints(path.parent).read(path)
        different = differences(content["recipe"], recipe)
        before, after = different.get("epochs", (0, 0))
        if isinstance(before, int) and after > before:
            say(
                f"prolonged from {before} to {after} epochs; from here on the learning rate follows the longer schedule"
            )
            del different["epochs"]
        if different:
            listed = "; ".join(
                f"{printable(name)[:60]}: {reprlib.repr(old)} there, {reprlib.repr(new)} now"
                for name, (old, new) in list(different.items())[:2]
            )
            more = f", and {len(different) - 2} more" if len(different) > 2 else ""
            raise CheckpointError(
                f"{path}: belongs to another recipe ({listed}{more}); continue it with its own values, or begin "
                "another run in another --output"
            )
        return {**content, "path": str(path)}

    def _refuse_other_run(self, resume: str | None) -> None:
        if resume is None and self.checkpoints.steps():
            raise OptionError(
                f"{self.path} holds a run already; continue it with --resume auto, prolong it with more --epochs and "
                "--resume auto, or name another --output"
            )
