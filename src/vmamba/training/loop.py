"""The training loop: one for every task, on one process or many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from vmamba.errors import DataError, OptionError, TrainingError
from vmamba.files import atomic_write, refuse_overwriting
from vmamba.tasks import task_class
from vmamba.tasks.protocol import Job, Metric, Task, TaskRecipe
from vmamba.training.distributed import Processes, restarted
from vmamba.training.evaluation import autocast, evaluate
from vmamba.training.interruption import Interrupted, StopRequests
from vmamba.training.log import RunLog, SilentLog, say, show
from vmamba.training.nonfinite import Diverged, report
from vmamba.training.recipe import Recipe
from vmamba.training.run_folder import RunFolder
from vmamba.training.state import Position
from vmamba.training.trainer import NonFinite, Trainer

#: Takes the number of epochs done and the best headline so far.
OnValidation = Callable[[int, float | None], None]
#: The end of an epoch that is not validated is saved only where the last checkpoint is older: an epoch of a few images
#: takes less time than a checkpoint does.
SAVE_SECONDS = 30.0
#: Folder of the weights that a run writes for use, and what tasks write there.
WEIGHTS, WRITTEN = "weights", ("model.safetensors", "model.json", "labels.txt")


@dataclass(frozen=True)
class Result:
    """Outcome of a run.

    Attributes:
        metric: The headline.
        best: Its best value, or None where it has never been a number.
        files: What was written for use: weights, class names, the picture of the curves.
    """

    metric: Metric
    best: float | None
    files: list[Path]


def train(
    recipe: Recipe,
    output: Path,
    processes: Processes,
    *,
    resume: str | None = None,
    stop: StopRequests | None = None,
    task: Task | None = None,
    on_validation: OnValidation | None = None,
) -> Result:
    """Train as a recipe says, to the end; every process of the run calls this.

    Args:
        recipe: What to compute.
        output: Folder of the run.
        processes: Who takes part.
        resume: ``"auto"`` to continue from the newest checkpoint in `output` where there is one, or a checkpoint.
        stop: Signals that may end the run early.
        task: What is learnt instead of the recipe's task.
        on_validation: Called in the first process after each validation that is done and noted, with the epoch and the
            best headline so far; what it raises ends the run.

    Raises:
        VMambaError: For whatever is wrong with recipe, data or checkpoint, or a folder that is in use or holds a run
            that is not continued.
        Interrupted: After a request to stop, once the state is saved.
        Diverged: If the loss or its gradient is not finite.
    """
    stop = stop or StopRequests()
    folder = RunFolder(output, recipe.keep, patience=30 if restarted() else 0)
    if recipe.checkpoint is not None:
        refuse_overwriting([output / WEIGHTS / name for name in WRITTEN], [Path(recipe.checkpoint)])
    processes.on_first(lambda: folder.check(resume))
    if task is None and recipe.model is None and recipe.checkpoint is None:
        raise OptionError("which model? give --model NAME; 'vmamba models' lists them")
    task = task or task_class(recipe.task)(job_of(recipe, processes), recipe.options)
    task.setup()
    processes.on_first(lambda: show(task.summary()))
    trainer = Trainer(task, recipe.replace(options=task.options), processes)
    with ExitStack() as held:
        content: dict[str, Any] = {}

        def enter() -> Position | None:
            held.enter_context(folder.locked())
            checkpoint = folder.read(resume, trainer.recipe, say)
            with atomic_write(output / "recipe.yaml") as file:
                file.write(trainer.recipe.to_yaml().encode(errors="surrogateescape"))
            if checkpoint is None:
                return None
            content.update(checkpoint)  # large: it stays in this process
            return Position(**checkpoint["position"])

        position = processes.on_first(enter)
        if position is not None:
            trainer.restore(position, content)
            content.clear()
        return Run(trainer, folder, stop, on_validation).fit()


def job_of(recipe: Recipe, processes: Processes) -> Job:
    """The part of a recipe that each process gives to its task.

    Raises:
        OptionError: If the recipe names no data, or its batch cannot be divided among processes and passes.
    """
    if recipe.data is None:
        raise OptionError("which data? give --data FOLDER with train/ and val/ in it")
    parts = processes.size * recipe.grad_accum_steps
    if recipe.batch_size % parts:
        raise OptionError(
            f"batch_size ({recipe.batch_size}) cannot be divided among {processes.size} processes × "
            f"{recipe.grad_accum_steps} accumulated passes"
        )
    fields = {name: getattr(recipe, name) for name in TaskRecipe.names()}
    size = recipe.batch_size // parts
    return Job(data=recipe.data, batch_size=size, rank=processes.rank, world_size=processes.size, **fields)


class Run:
    """The loop over epochs: steps, checkpoints, validation.

    Args:
        trainer: Takes the steps.
        folder: Where checkpoints and weights go; locked.
        stop: Requests to stop.
        on_validation: See `train`.
    """

    def __init__(
        self, trainer: Trainer, folder: RunFolder, stop: StopRequests, on_validation: OnValidation | None = None
    ) -> None:
        self.trainer, self.folder, self.stop, self.on_validation = trainer, folder, stop, on_validation
        self.log = RunLog(folder.path, trainer) if trainer.processes.first else SilentLog()
        self.files: list[Path] = []
        self.saved = time.monotonic()

    def fit(self) -> Result:
        """Train to the end; see `train`."""
        trainer, position = self.trainer, self.trainer.position
        self.stop.defer()
        trainer.start()
        if position.to_validate:
            self._validate()
        while position.epoch < trainer.recipe.epochs:
            with self.log.bar():
                self._epoch()
            self._end_epoch()
        return Result(trainer.task.metric, position.best, self.files + self.log.close())

    def _epoch(self) -> None:
        trainer, recipe, position = self.trainer, self.trainer.recipe, self.trainer.position
        steps = trainer.epoch()
        while position.step_in_epoch < trainer.steps_per_epoch:
            with self.log.waiting():
                batches = next(steps)
            outcome = trainer.step(batches, lambda: self.stop.pending)
            if isinstance(outcome, NonFinite):
                self._diverged(outcome)
            losses, stop = outcome
            self.log.step(losses)
            at_end = position.step_in_epoch == trainer.steps_per_epoch  # saved there, too
            if not at_end and (stop or (recipe.save_every and position.step % recipe.save_every == 0)):
                path = self._save()
                if stop:
                    raise Interrupted(f"stopped at step {position.step}; continue with --resume auto, from {path}")

    def _end_epoch(self) -> None:
        """Save before anything that may fail, or where much would be lost; then validate and report."""
        trainer, position = self.trainer, self.trainer.position
        epochs = trainer.recipe.epochs
        position.epoch += 1
        position.step_in_epoch = 0
        position.to_validate = position.epoch % trainer.recipe.validate_every == 0 or position.epoch in (1, epochs)
        due = time.monotonic() - self.saved > SAVE_SECONDS
        stop, due = map(bool, trainer.processes.sum([self.stop.pending, due]))
        if stop or due or position.to_validate:
            path = self._save()
            if stop:
                raise Interrupted(f"stopped after epoch {position.epoch}; continue with --resume auto, from {path}")
        if position.to_validate:
            self._validate()
        unreadable = trainer.processes.gather(trainer.train_loader.skipped + trainer.val_loader.skipped)
        self.log.skipped(list(dict.fromkeys(line for lines in unreadable for line in lines)))

    def _validate(self) -> None:
        """Evaluate the weights and their average after a saved epoch; export the better of them if it is the best."""
        trainer, position = self.trainer, self.trainer.position
        saved = f"epoch {position.epoch} is saved; continue with --resume auto"

        def check() -> None:
            if trainer.processes.size == 1:  # else all stop together, at the next step
                self.stop.check(f"stopped while validating; {saved}")

        try:
            self._evaluate_candidates(check)
        except (DataError, OSError) as error:
            raise TrainingError(f"{error}; {saved}") from error

    def _evaluate_candidates(self, on_batch: Callable[[], None]) -> None:
        trainer, position = self.trainer, self.trainer.position
        task, metric, processes = trainer.task, trainer.task.metric, trainer.processes
        row: dict[str, float] = {}
        improved = False
        for prefix, name, model in trainer.candidates():
            results = evaluate(
                task, model, trainer.val_loader, processes, dtype=trainer.dtype, description=name, on_batch=on_batch
            )
            row |= {f"{prefix}{key}": value for key, value in results.items()}
            if _better(results[metric.name], position.best, metric):
                position.best, improved = results[metric.name], True
                if processes.first:
                    summary = self._summary(name, results)
                    self.files = task.export(model, self.folder.path / WEIGHTS, summary)
        position.to_validate = False
        self.log.validation(row)
        processes.on_first(lambda: self.folder.checkpoints.mark_validated(position, improved))
        if self.on_validation is not None and processes.first:
            self.on_validation(position.epoch, position.best)

    def _summary(self, weights: str, results: Mapping[str, float]) -> dict[str, Any]:
        """Summary of the run, written beside its weights."""
        recipe, position = self.trainer.recipe, self.trainer.position
        names = ("data", "model", "checkpoint", "pretrained", "epochs", "batch_size", "optimizer", "lr", "seed")
        values = {name: getattr(recipe, name) for name in names}
        results = {name: value for name, value in results.items() if name != "images_per_second"}
        return {**values, "epoch": position.epoch, "step": position.step, "weights": weights, "results": results}

    def _save(self) -> Path:
        trainer = self.trainer
        state = trainer.state.whole()  # all processes take part where it is gathered
        save = self.folder.checkpoints.save
        path = trainer.processes.on_first(lambda: save(state, trainer.position, trainer.recipe.as_dict()))
        self.saved = time.monotonic()
        return path

    def _diverged(self, step: NonFinite) -> NoReturn:
        trainer, number = self.trainer, self.trainer.position.step + 1
        path = self.folder.path / f"nonfinite_step_{number}_process_{trainer.processes.rank}.json"
        facts: dict[str, Any] = {"step": number, "epoch": trainer.position.epoch + 1, "process": trainer.processes.rank}
        facts |= {name: str(value) for name, value in step.values.items()}  # JSON has no NaN
        cast = autocast(trainer.processes.device, trainer.dtype)
        where = report(trainer.task, trainer.model, step.batches, step.seeds, cast, facts, path)
        if not step.here:
            path.unlink()
            where, path = "in another process", self.folder.path
        saved = self.folder.checkpoints.steps()
        last = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
        raise Diverged(f"the loss is not finite at step {number}, {where}; see {path}; {last}")


def _better(value: float, best: float | None, metric: Metric) -> bool:
    if not math.isfinite(value):
        return False
    return best is None or (value > best if metric.larger_is_better else value < best)
