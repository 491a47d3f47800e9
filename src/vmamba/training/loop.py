"""The training loop: one for every task, on one process or many."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

from vmamba.data.randomness import seed_all
from vmamba.errors import CheckpointError
from vmamba.progress import progress_bar
from vmamba.tasks import task_class
from vmamba.tasks.protocol import Batch, Job, Metric
from vmamba.training.distributed import Processes, distribute, shard, without_sync
from vmamba.training.evaluation import autocast, evaluate
from vmamba.training.log import Table, TensorBoard, draw_curves
from vmamba.training.nonfinite import Diverged, report
from vmamba.training.optimizer import autocast_dtype, build_average, build_optimizer, build_schedule
from vmamba.training.recipe import Recipe, differences
from vmamba.training.state import Checkpoints, Learner, Position, read

#: What a cluster sends before it takes the machine away.
WARNINGS = (signal.SIGTERM, signal.SIGUSR1)


class Interrupted(Exception):
    """The run was asked to stop; its state is saved and the message, one line, says how to continue."""


@dataclass(frozen=True)
class Result:
    """How a run ended.

    Attributes:
        metric: The headline.
        best: Its best value, or None where it has never been a number.
        files: What was written for use: weights, class names, the picture of the curves.
    """

    metric: Metric
    best: float | None
    files: list[Path]


def job_of(recipe: Recipe, processes: Processes) -> Job:
    """What each process asks its task to do.

    Raises:
        ValueError: If the recipe names no data, or its batch cannot be divided among processes and passes.
    """
    if recipe.data is None:
        raise ValueError("which data? give --data FOLDER with train/ and val/ in it")
    parts = processes.size * recipe.accumulate
    if recipe.batch_size % parts:
        raise ValueError(
            f"batch_size ({recipe.batch_size}) cannot be divided among {processes.size} processes × "
            f"{recipe.accumulate} accumulated passes"
        )
    return Job(
        data=recipe.data,
        model=recipe.model,
        model_options=recipe.model_options,
        checkpoint=Path(recipe.checkpoint) if recipe.checkpoint else None,
        weights=recipe.weights,
        pretrained=recipe.pretrained,
        batch_size=recipe.batch_size // parts,
        workers=recipe.workers,
        seed=recipe.seed,
        strict=recipe.strict,
        rank=processes.rank,
        world_size=processes.size,
    )


class Run:
    """One process's part in a run.

    Args:
        recipe: What to compute.
        output: Folder of the run.
        processes: Who takes part.
        resume: ``"auto"`` to continue from the newest checkpoint in `output` where there is one, or a checkpoint.

    Raises:
        ValueError: For whatever is wrong with recipe or data, or a folder that holds a run that is not continued.
        CheckpointError: For a checkpoint that cannot be read, or is that of another recipe.
    """

    def __init__(self, recipe: Recipe, output: Path, processes: Processes, resume: str | None = None) -> None:
        self.output, self.processes = output, processes
        self.task = task_class(recipe.task)(job_of(recipe, processes), recipe.options)
        self.train_loader, self.val_loader = self.task.train_loader(), self.task.val_loader()
        self.recipe = recipe = replace(recipe, options=self.task.options)
        self.checkpoints = Checkpoints(output / "checkpoints", recipe.keep)
        self.position = Position()
        state = self._state_to_resume(resume)

        self.steps_per_epoch = len(self.train_loader) // recipe.accumulate
        if not self.steps_per_epoch:
            raise ValueError(f"the training images are fewer than one batch of {recipe.batch_size}; use a smaller one")
        seed_all(recipe.seed)
        model = self.task.build_model()
        if recipe.grad_checkpointing:
            cast(Any, model).set_grad_checkpointing()
        self.whole = deepcopy(model) if recipe.distribution == "fsdp" else None  # to evaluate gathered weights with
        self.model = model.to(processes.device)
        self.dtype = autocast_dtype(recipe.precision, processes.device)
        ema = build_average(self.model, recipe)
        self.wrapped = distribute(self.model, recipe.distribution, processes)
        if ema is not None and recipe.distribution == "fsdp":
            shard(ema.module)
        optimizer = build_optimizer(self.model, recipe)
        self.schedule = build_schedule(optimizer, recipe, self.steps_per_epoch)
        scaler = torch.amp.GradScaler(processes.device.type, enabled=self.dtype == torch.float16)
        self.learner = Learner(self.model, optimizer, scaler, ema)
        if state is not None:
            self.learner.load(state, processes)
        if recipe.compile:
            self.model.compile()
        self.asked_to_stop = False

    def _state_to_resume(self, resume: str | None) -> dict[str, Any] | None:
        """What the first process reads; the position, everywhere."""
        state: dict[str, Any] | None = None
        problem: Exception | None = None
        if self.processes.first:
            try:
                state = self._read_state(resume)
            except (CheckpointError, ValueError) as error:
                problem = error
        problem, position = self.processes.from_first((problem, state["position"] if state else None))
        if problem is not None:
            raise problem
        if position is None:
            return None
        self.position = Position(**position)
        return state if state is not None else {}

    def _read_state(self, resume: str | None) -> dict[str, Any] | None:
        if resume is None:
            if self.checkpoints.steps():
                raise ValueError(
                    f"{self.output} holds a run already; continue it with --resume auto, or name another --output"
                )
            return None
        if resume == "auto":
            found = self.checkpoints.newest()
            if found is None:
                return None
            path, state, problems = found
            for problem in problems:
                print(f"vmamba: {problem}; continuing from {path.name}", flush=True)
        else:
            path = Path(resume)
            state = read(path)
        different = differences(state["recipe"], self.recipe)
        if different:
            more = f", and {len(different) - 2} more" if len(different) > 2 else ""
            raise CheckpointError(f"{path}: belongs to another recipe ({'; '.join(different[:2])}{more})")
        return state

    # ----------------------------------------------------------------------------------------------------------------
    # The loop

    def fit(self) -> Result:
        """Train to the end.

        Raises:
            Interrupted: After a SIGTERM or SIGUSR1, once the state is saved.
            Diverged: If the loss or its gradient is not finite.
            CheckpointError: If a checkpoint cannot be written.
        """
        self._start_logs()
        files: list[Path] = []
        steps = self.recipe.epochs * self.steps_per_epoch
        with self._warned(), progress_bar("images") if self.processes.first else nullcontext() as bar:
            if bar is not None:
                done = self.position.step * self.recipe.batch_size
                bar.add_task("training", total=steps * self.recipe.batch_size, completed=done)
            self.model.train()
            while self.position.epoch < self.recipe.epochs:
                self._epoch(bar)
                files = self._end_of_epoch(bar) or files
        if self.processes.first:
            self.tensorboard.close()
            curves = draw_curves(self.output, self.task.metric.name)
            files += [curves] if curves else []
        return Result(self.task.metric, self.position.best, files)

    def _epoch(self, bar: Progress | None) -> None:
        recipe, position = self.recipe, self.position
        batches = self.train_loader.batches(position.epoch, position.step_in_epoch * recipe.accumulate)
        clock = _Clock()
        while position.step_in_epoch < self.steps_per_epoch:
            with clock.waiting():
                together = [next(batches).to(self.processes.device) for _ in range(recipe.accumulate)]
            values, stop = self._step(together)
            clock.images += recipe.batch_size
            position.step += 1
            position.step_in_epoch += 1
            last = position.step_in_epoch == self.steps_per_epoch
            if bar is not None:
                memory = memory_gb(self.processes.device)
                text = f"epoch {position.epoch + 1}/{recipe.epochs} loss {values['loss']:.3f} {memory:.1f} GB"
                bar.update(bar.task_ids[0], advance=recipe.batch_size, description=text)
            if position.step % recipe.log_every == 0 or position.step == 1 or last:
                self._log(values, clock)
            if not last and (stop or (recipe.save_every and position.step % recipe.save_every == 0)):
                path = self._save()
                if stop:
                    raise Interrupted(f"stopped at step {position.step}; continue with --resume auto, from {path}")

    def _step(self, batches: Sequence[Batch]) -> tuple[dict[str, float], bool]:
        """One step of the optimiser: the mean of every loss over processes, and whether to stop after it."""
        recipe, learner, processes = self.recipe, self.learner, self.processes
        seeds = (recipe.seed, self.position.step, processes.rank)
        seed_all(*seeds)
        self.schedule.step_update(self.position.step)
        sums: dict[str, Tensor] = {}
        for i, batch in enumerate(batches):
            with without_sync(self.wrapped, accumulating=i < len(batches) - 1):
                with autocast(processes.device, self.dtype):
                    losses = self.task.loss(self.wrapped, batch)
                learner.scaler.scale(losses["loss"] / len(batches)).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach().float() / len(batches)
        learner.scaler.unscale_(learner.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip_grad or math.inf)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        *mine, gradient = torch.stack([*sums.values(), norm.float()]).tolist()  # the one wait for the device
        # float16 meets infinite gradients while its scale settles; the scaler skips those steps itself.
        bad = not all(map(math.isfinite, mine)) or (not math.isfinite(gradient) and not learner.scaler.is_enabled())
        *totals, stops, bads = processes.sum([*mine, self.asked_to_stop, bad])
        if bads:
            self._diverged(batches, seeds, {"loss": mine[0], "gradient_norm": gradient}, bad)
        learner.scaler.step(learner.optimizer)
        learner.scaler.update()
        learner.optimizer.zero_grad(set_to_none=True)
        if learner.ema is not None:
            learner.ema.update(self.model, step=self.position.step)
        values = {name: total / processes.size for name, total in zip(sums, totals, strict=True)}
        return {**values, "grad_norm": gradient}, stops > 0

    def _diverged(self, batches: Sequence[Batch], seeds: Sequence[int], found: dict[str, Any], mine: bool) -> None:
        step, rank = self.position.step + 1, self.processes.rank
        path = self.output / f"nonfinite_step_{step}_process_{rank}.json"
        found = {name: str(value) for name, value in found.items()}  # JSON has no NaN
        facts = {"step": step, "epoch": self.position.epoch + 1, "process": rank, **found}
        cast = autocast(self.processes.device, self.dtype)
        where = report(self.task, self.model, batches, seeds, cast, facts, path)
        if not mine:
            path.unlink()
            where, path = "in another process", self.output
        saved = self.checkpoints.steps()
        last = f"the last good checkpoint is {saved[-1]}" if saved else "there is no checkpoint yet"
        raise Diverged(f"the loss is not finite at step {step}, {where}; see {path}; {last}")

    # ----------------------------------------------------------------------------------------------------------------
    # Between epochs

    def _end_of_epoch(self, bar: Progress | None) -> list[Path]:
        """Validate, keep the best, save; the files written for use."""
        position = self.position
        position.epoch += 1
        position.step_in_epoch = 0
        files: list[Path] = []
        best = position.best
        if position.epoch % self.recipe.validate_every == 0 or position.epoch in (1, self.recipe.epochs):
            if bar is not None:
                bar.stop()
            files = self._validate()
            if bar is not None and position.epoch < self.recipe.epochs:
                bar.start()
        self._report_skipped()
        path = self._save(best=position.best != best)
        if self.processes.sum([self.asked_to_stop])[0] and position.epoch < self.recipe.epochs:
            raise Interrupted(f"stopped after epoch {position.epoch}; continue with --resume auto, from {path}")
        return files

    def _validate(self) -> list[Path]:
        """Evaluate the weights and their average; export the better of them where it is the best so far."""
        position, metric = self.position, self.task.metric
        files: list[Path] = []
        row: dict[str, float] = {"step": position.step, "epoch": position.epoch}
        told = []
        for prefix, what, model in self._candidates():
            results = evaluate(self.task, model, self.val_loader, self.processes, dtype=self.dtype, description=what)
            row |= {f"{prefix}{name}": value for name, value in results.items()}
            told.append(f"{what} {results[metric.name]:.2f}")
            if _better(results[metric.name], position.best, metric):
                position.best = results[metric.name]
                files = self.task.export(model, self.output / "weights") if self.processes.first else []
        if self.processes.first:
            self.epoch_table.add(row)
            self.tensorboard.add(
                "validation", {k: v for k, v in row.items() if k not in ("step", "epoch")}, position.step
            )
            rate = f"{self.rate:,.0f} images/s, {self.wait:.0%} of the time waiting for data"
            print(
                f"epoch {position.epoch}/{self.recipe.epochs} · {metric.name}: {', '.join(told)} · {rate}", flush=True
            )
        return files

    def _candidates(self) -> Iterator[tuple[str, str, nn.Module]]:
        """What to evaluate: prefix of the results, words, model with whole weights."""
        learned = [("", "weights", self.model)]
        if self.learner.ema is not None:
            learned.append(("ema_", "average of weights", self.learner.ema.module))
        for prefix, what, model in learned:
            if self.whole is None:
                yield prefix, what, model
                continue
            weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
            self.whole.to(self.processes.device).load_state_dict(weights)
            yield prefix, what, self.whole

    def _save(self, best: bool = False) -> Path:
        state = self.learner.state()  # all processes take part where it is gathered
        path = self.checkpoints.folder
        if self.processes.first:
            path = self.checkpoints.save(state, self.position, self.recipe.as_dict(), best)
        return path

    # ----------------------------------------------------------------------------------------------------------------
    # Telling

    def _start_logs(self) -> None:
        self.rate = self.wait = 0.0
        self.told_skipped = 0
        if self.processes.first:
            self.output.mkdir(parents=True, exist_ok=True)
            (self.output / "recipe.yaml").write_text(self.recipe.to_yaml(), encoding="utf-8")
            self.step_table = Table(self.output / "steps.csv", self.position.step)
            self.epoch_table = Table(self.output / "epochs.csv", self.position.step)
            self.tensorboard = TensorBoard(self.output / "tensorboard", self.position.step)

    def _log(self, values: dict[str, float], clock: _Clock) -> None:
        self.rate, self.wait = clock.lap()
        if not self.processes.first:
            return
        values = {
            **values,
            "lr": max(group["lr"] for group in self.learner.optimizer.param_groups),
            "images_per_second": self.rate,
            "wait_share": self.wait,
            "memory_gb": memory_gb(self.processes.device),
        }
        epoch = self.position.epoch + self.position.step_in_epoch / self.steps_per_epoch
        self.step_table.add({"step": self.position.step, "epoch": epoch, **values})
        self.tensorboard.add("training", values, self.position.step)

    def _report_skipped(self) -> None:
        """List unreadable images in ``skipped.txt``, and say so once more each time there are new ones."""
        lists = self.processes.gather(self.train_loader.skipped + self.val_loader.skipped)
        names = list(dict.fromkeys(name for some in lists for name in some))
        if self.processes.first and len(names) > self.told_skipped:
            path = self.output / "skipped.txt"
            path.write_text("\n".join(names) + "\n", encoding="utf-8")
            print(
                f"vmamba: {len(names)} images could not be read and were left out; they are listed in {path}",
                flush=True,
            )
        self.told_skipped = len(names)

    @contextmanager
    def _warned(self) -> Iterator[None]:
        """Turn signals into a request to stop; a second Ctrl-C stops at once."""

        def handle(number: int, _: FrameType | None) -> None:
            self.asked_to_stop = True
            if number == signal.SIGINT:
                signal.signal(number, signal.default_int_handler)

        before = {number: signal.signal(number, handle) for number in (*WARNINGS, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Clock:
    """Images per second, and the share of the time spent waiting for data, since the last lap."""

    def __init__(self) -> None:
        self.images, self.waited, self.start = 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def lap(self) -> tuple[float, float]:
        elapsed = max(time.perf_counter() - self.start, 1e-9)
        result = self.images / elapsed, self.waited / elapsed
        self.__init__()  # type: ignore[misc]
        return result


def _better(value: float, best: float | None, metric: Metric) -> bool:
    if not math.isfinite(value):
        return False
    return best is None or (value > best if metric.larger_is_better else value < best)


def memory_gb(device: torch.device) -> float:
    """Most memory used so far, GiB: of the GPU, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
