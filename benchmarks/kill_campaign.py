"""Runs that are killed, told to stop, run out of disk or lose a process: what is left, and whether they end alike.

    python benchmarks/kill_campaign.py                       # everything, about an hour on one core
    python benchmarks/kill_campaign.py kills --kills 10      # one part, fewer trials
    python benchmarks/kill_campaign.py --minutes 3           # as far as that goes; the same command continues

A tiny classifier is trained on images drawn here. After every blow the same command with ``--resume auto`` must go on;
the weights, their average, the optimiser's state and the losses of every step must be those of a run that nobody
disturbed, bit for bit. Needs a system with `fork`, and the right to mount a small disk that gets full.
Results: benchmarks/results/kill_campaign.md.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import io
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from campaign import Record
from paired import RESULTS

from vmamba import VMambaConfig
from vmamba.checkpoints.saving import save_weights
from vmamba.cli import main as vmamba
from vmamba.data.images import find_images
from vmamba.tasks.classification.prediction import eval_transform, predict
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig
from vmamba.zoo import create_model
from vmamba_command import main as console_script

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

EPOCHS = 3
RECIPE = {
    "model": "vmamba_pico",
    "model_options": {"dims": [8, 16, 24, 32], "depths": [1, 1, 1, 1], "drop_path_rate": 0.2},
    "epochs": EPOCHS, "batch_size": 8, "warmup_epochs": 1, "ema": 0.9, "workers": 1, "save_every": 2, "log_every": 1,
    "options": {"image_size": 32, "mixup": 0.8, "cutmix": 1.0, "auto_augment": "rand-m9-mstd0.5-inc1"},
}  # fmt: skip
Counts = Counter[str]

#: The console script, as `pip` makes it.
COMMAND = [sys.executable, "-c", "import sys; from vmamba_command import main; sys.exit(main())"]
#: Exit status of a run that was stopped and can be continued.
STOPPED = 75
#: The error of a run whose disk is full: its place, and what to do.
REFUSAL = re.compile("vmamba: error: /.*make room")
#: Blows that one run gets.
MOST = 10
#: Stages of the writing of a file at which a process dies.
STAGES = ("opened", "torn", "unsynced", "written", "named")


class Campaign:
    """Trials around one undisturbed run.

    Attributes:
        draw: Decides the moments of the blows.
        failures: What happened that must not, one line each.

    Args:
        folder: For everything.
    """

    def __init__(self, folder: Path) -> None:
        from support.runs import write_images

        self.folder, self.draw, self.failures = folder, random.Random(), list[str]()
        self.images, self.recipe = folder / "images", folder / "recipe.yaml"
        write_images(self.images, "train", 16)
        write_images(self.images, "val", 4)
        self.recipe.write_text(yaml.safe_dump(RECIPE))
        for _ in range(2):  # the second is not slowed by what is done once
            shutil.rmtree(folder / "undisturbed", ignore_errors=True)
            begin = time.monotonic()
            if self.wait(self.fork(folder / "undisturbed")):
                raise SystemExit(self.log(folder / "undisturbed").read_text())
            self.seconds = time.monotonic() - begin
        self.truth = digest(folder / "undisturbed")

    def arguments(self, output: Path, *more: str) -> list[str]:
        command = ["train", "--recipe", self.recipe, "--data", self.images, "--output", output, "--device", "cpu"]
        return [*map(str, command), "--resume", "auto", *more]

    def fork(self, output: Path, before: Callable[[], None] = lambda: None) -> int:
        """Start a run in a process of its own that need not import anything; its id."""
        output.parent.mkdir(parents=True, exist_ok=True)
        pid = os.fork()
        if pid:
            with suppress(OSError):  # it has done so itself
                os.setpgid(pid, pid)
            return pid
        os.setpgid(0, 0)
        log = os.open(self.log(output), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        before()
        sys.argv = ["vmamba", *self.arguments(output)]
        try:
            os._exit(console_script())
        except BaseException:
            traceback.print_exc()
            os._exit(70)

    def log(self, output: Path) -> Path:
        """What the processes of a run print; not on the disk that gets full."""
        return self.folder / f"{output.parent.name}_{output.name}.log"

    def wait(self, pid: int) -> int:
        """The exit status of a process, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def finish(self, output: Path, counts: Counts) -> None:
        """Continue until the run is done, and compare it."""
        status = self.wait(self.fork(output))
        same = status == 0 and digest(output) == self.truth
        counts["runs"] += 1
        counts["ended the same"] += same
        self.check(counts, "ENDED DIFFERENTLY", not same, output)
        self.check(counts, "LEFTOVERS", writing(output), output)
        self.check(counts, "TRACEBACKS", "Traceback" in self.log(output).read_text(), output)
        if not same:
            kept = Path(tempfile.mkdtemp(prefix="vmamba_differs_"))
            shutil.move(output, kept)
            shutil.copytree(self.folder / "undisturbed", kept / "undisturbed")
            shutil.copy(self.log(output), kept)
            self.failures.append(f"{output.parent.name}/{output.name} is kept in {kept}")
        else:
            shutil.rmtree(output)
        self.log(output).unlink()

    def check(self, counts: Counts, what: str, happened: bool, output: Path) -> None:
        """Count what must not happen, and keep the last lines that the run printed."""
        counts[what] += happened
        if happened:
            text = self.log(output).read_text() if self.log(output).is_file() else ""
            lines = text[text.find("Traceback") :].splitlines()[:30] if "Traceback" in text else text.splitlines()[-3:]
            self.failures.append(f"{output.parent.name}/{output.name}: {what}: {' | '.join(lines)}")

    # ----------------------------------------------------------------------------------------------------------------
    # The parts: each call is one trial

    def kills(self, counts: Counts) -> None:
        """``kill -9`` at random moments of a run until it is done, every third inside the writing of a file."""
        output = self.folder / "kills" / str(counts["runs"])
        for _ in range(MOST):
            inside = (counts["kills"] + 1) % 3 == 0
            nth, stage = self.draw.randrange(12), self.draw.choice(STAGES)
            pid = self.fork(output, (lambda n=nth, at=stage: die_while_writing(n, at)) if inside else lambda: None)
            if not inside:
                time.sleep(self.draw.uniform(0, 0.6 * self.seconds))
                os.kill(pid, signal.SIGKILL)
            if self.wait(pid) != -signal.SIGKILL:
                break  # it was done before
            kill_group(pid)
            counts["kills"] += 1
            counts["inside the writing of a file"] += inside
            counts["files left half written"] += writing(output)
        self.finish(output, counts)

    def disks(self, counts: Counts) -> None:
        """A disk that is full at a random moment."""
        with small_disk(self.folder / f"disk{counts['full disks']}") as (disk, fill, empty):
            output = disk / "run"
            pid = self.fork(output)
            time.sleep(self.draw.uniform(0, 0.9 * self.seconds))
            fill(self.draw.randrange(200_000))
            status = self.wait(pid)
            empty()
            counts["full disks"] += 1
            counts[f"exit status {status}"] += 1
            self.check(counts, "OTHER EXIT STATUS", status not in (0, 2), output)
            said = self.log(output).read_text()
            self.check(counts, "WITHOUT PLACE OR REMEDY", status == 2 and not REFUSAL.search(said), output)
            self.finish(output, counts)

    def terms(self, counts: Counts) -> None:
        """SIGTERM at random moments of a run's life until it is done, to the process or its group."""
        output = self.folder / "terms" / str(counts["runs"])
        for _ in range(MOST):
            pid = self.fork(output)
            time.sleep(self.draw.uniform(0.05, 1.1 * self.seconds))
            group = self.draw.random() < 0.5
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            (os.killpg if group else os.kill)(pid, signal.SIGTERM)
            status = self.wait(pid)
            counts["too late" if ended else "signals"] += 1
            counts[f"exit status {status}"] += 1
            self.check(counts, "OTHER EXIT STATUS", status not in (0, STOPPED), output)
            if status == 0:
                break
        self.finish(output, counts)

    def starts(self, counts: Counts) -> None:
        """SIGTERM within the first seconds of a new process, imports included, started as people do.

        Python has no handler before the command begins, nor when it has ended and Python tidies up.
        """
        output = self.folder / "starts" / str(counts["signals"])
        process = subprocess.Popen(
            [*COMMAND, *self.arguments(output)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        time.sleep(self.draw.uniform(0.15, self.start_seconds + 0.5 * self.seconds))
        ended, listening = process.poll() is not None, handles(process.pid, signal.SIGTERM)
        process.terminate()
        _, error = process.communicate()
        status = process.returncode
        counts["too late" if ended else "signals" if listening else "without a handler"] += 1
        counts[f"exit status {status}"] += 1
        self.log(output).write_text(error)
        expected = (0, STOPPED) if listening else (0, STOPPED, -signal.SIGTERM)
        self.check(counts, "OTHER EXIT STATUS", status not in expected, output)
        self.check(counts, "SILENT", status not in (0, -signal.SIGTERM) and not error, output)
        if output.exists():
            self.finish(output, counts)

    def processes(self, counts: Counts) -> None:
        """Two processes under torchrun, one of which is killed at a random moment; torchrun starts both again."""
        from support.runs import children, losses

        seconds, truth = self.two
        output = self.folder / "two" / str(counts["runs"])
        process = self.start_two(output)
        wait_until(lambda: bool(losses(output)), 5 * seconds)
        time.sleep(self.draw.uniform(0, 0.8 * self.seconds))
        workers = children(process.pid)
        counts["runs"] += 1
        if workers:
            os.kill(self.draw.choice(workers), signal.SIGKILL)
            counts["workers killed"] += 1
        same = process.wait() == 0 and digest(output) == truth
        counts["ended the same"] += same
        self.check(counts, "ENDED DIFFERENTLY", not same, output)
        shutil.rmtree(output, ignore_errors=True)

    def predictions(self, counts: Counts) -> None:
        """Predictions in one process, whose memory must not grow."""
        model = create_model("vmamba_pico", num_classes=4)
        transform, paths = eval_transform(model, 64), find_images([self.images])
        taken: list[float] = []
        done = 0
        while done < counts["wanted"]:
            done += sum(1 for _ in predict(model, paths, transform=transform, batch_size=16))
            taken.append(resident())
        counts["predictions"] = done
        report_memory(taken, counts)

    def commands(self, counts: Counts) -> None:
        """Commands in one process, predict, detect and segment in turns, whose memory must not grow."""
        weights = {"predict": create_model("vmamba_pico", num_classes=4), **dense_models()}
        for name, model in weights.items():
            save_weights(model, self.folder / name / "model.safetensors")
        taken: list[float] = []
        done = 0
        while done < counts["wanted"]:
            for name in weights:
                more = [] if name == "predict" else ["--output", self.folder / name / "results"]
                checkpoint = self.folder / name / "model.safetensors"
                arguments = [name, self.images / "val", "--checkpoint", checkpoint, *more, "--device", "cpu", "--json"]
                arguments += [] if name == "predict" else ["--overwrite"]
                with contextlib.redirect_stdout(io.StringIO()):
                    counts["OTHER EXIT STATUS"] += vmamba(list(map(str, arguments))) != 0
                done += 1
            taken.append(resident())
        counts["commands"] = done
        report_memory(taken, counts)

    # ----------------------------------------------------------------------------------------------------------------

    @cached_property
    def start_seconds(self) -> float:
        """Time that a new process takes to import everything."""
        begin = time.monotonic()
        subprocess.run([*COMMAND, "train", "--print-config"], stdout=subprocess.DEVNULL, check=True)
        return time.monotonic() - begin

    def start_two(self, output: Path) -> subprocess.Popen[bytes]:
        """A run on two processes."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        command = [*launcher, "--max-restarts", "3", "-m", "vmamba", *self.arguments(output)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    @cached_property
    def two(self) -> tuple[float, str]:
        """Duration and digest of an undisturbed run on two processes."""
        begin = time.monotonic()
        if self.start_two(self.folder / "two" / "undisturbed").wait():
            raise SystemExit("two processes do not train here")
        return time.monotonic() - begin, digest(self.folder / "two" / "undisturbed")


# --------------------------------------------------------------------------------------------------------------------


def digest(output: Path) -> str:
    """All that a run has computed: its last state, and the loss of every step."""
    from support.runs import STEPS, last_state, losses, tensors

    code = hashlib.sha256(repr(losses(output)).encode())
    if len(losses(output)) != EPOCHS * STEPS:
        return "incomplete"
    for name, tensor in sorted(tensors(last_state(output)).items()):
        code.update(name.encode())
        code.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return code.hexdigest()


def writing(output: Path) -> bool:
    """True where a file was being written when its writer died."""
    return any(output.rglob(".writing-*"))


def die_while_writing(nth: int, stage: str) -> None:
    """Make this process kill itself while it writes a file: the file of that number, at that stage."""
    count = 0

    def reached(place: str | bytes) -> bool:
        nonlocal count
        count += ".writing-" in os.fsdecode(place)
        return ".writing-" in os.fsdecode(place) and count > nth

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    class Torn(io.FileIO):
        """A file of which half of the first piece is written."""

        def write(self, data: Any) -> int:
            super().write(bytes(data)[: len(data) // 2])
            die()
            return 0

    fdopen, fsync, replace = os.fdopen, os.fsync, os.replace

    def torn(descriptor: int, *arguments: Any) -> Any:
        if not reached(os.readlink(f"/proc/self/fd/{descriptor}")):
            return fdopen(descriptor, *arguments)
        if stage == "opened":
            die()
        return io.BufferedWriter(Torn(descriptor, "wb"), buffer_size=64)

    def unsynced(descriptor: int) -> None:
        if reached(os.readlink(f"/proc/self/fd/{descriptor}")):
            die()
        fsync(descriptor)

    def unnamed(source: Any, target: Any) -> None:
        end = reached(os.fspath(source))
        if end and stage == "written":
            die()
        replace(source, target)
        if end:
            die()

    if stage in ("opened", "torn"):
        os.fdopen = torn
    elif stage == "unsynced":
        os.fsync = unsynced
    else:
        os.replace = unnamed


def handles(pid: int, number: int) -> bool:
    """True if a process has a handler for a signal, or is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return True
    caught = re.search(r"^SigCgt:\s*([0-9a-f]+)$", status, re.MULTILINE)
    return caught is None or bool(int(caught.group(1), 16) >> (number - 1) & 1)


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.0005)


def kill_group(pid: int) -> None:
    """End the loader processes of a process that is gone; they would notice by themselves in five seconds."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


@contextmanager
def small_disk(place: Path) -> Iterator[tuple[Path, Callable[[int], None], Callable[[], None]]]:
    """A disk of 8 MB, a function that leaves a number of bytes free on it, and one that makes room again."""
    place.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], check=False).returncode:
        raise SystemExit("cannot mount a small disk; run this part as root, or leave it out")
    ballast = place / "ballast"

    def fill(free: int) -> None:
        status = os.statvfs(place)
        with suppress(OSError), ballast.open("wb") as file:  # the run takes some, too
            file.write(b"x" * max(status.f_bavail * status.f_frsize - free, 0))

    try:
        yield place, fill, lambda: ballast.unlink(missing_ok=True)
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def dense_models() -> dict[str, torch.nn.Module]:
    """A small detector and a small segmenter."""
    backbone = VMambaConfig(dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_classes=0)
    classes = ("cat", "dog")
    return {
        "detect": MaskRCNN(MaskRCNNConfig(backbone, classes, channels=8, box_channels=8, mask_channels=8)),
        "segment": UperNet(UperNetConfig(backbone, classes, channels=8, auxiliary_channels=8)),
    }


def report_memory(taken: list[float], counts: Counts) -> None:
    """Add what a process took, MB, in the order in which it was measured."""
    settled = taken[len(taken) // 5 :]
    counts["MB after a fifth"], counts["MB at the end"] = round(settled[0]), round(settled[-1])
    counts["MB at most since"] = round(max(settled))
    counts["GREW"] = int(settled[-1] > 1.03 * settled[0] + 10)


def resident() -> float:
    """Memory of this process, MB, without what its allocator keeps for later."""
    with suppress(OSError, AttributeError):  # glibc's
        ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


#: Part → what it does, the number of trials, what it counts; None where the trials are one.
PARTS: dict[str, tuple[Callable[[Campaign, Counts], None], int, str | None]] = {
    "kills": (Campaign.kills, 100, "kills"),
    "disks": (Campaign.disks, 20, "full disks"),
    "terms": (Campaign.terms, 50, "signals"),
    "starts": (Campaign.starts, 50, "signals"),
    "processes": (Campaign.processes, 10, "runs"),
    "predictions": (Campaign.predictions, 10_000, None),
    "commands": (Campaign.commands, 300, None),
}


def main() -> int:
    """Run the parts and write down what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default all: {', '.join(PARTS)}")
    for name, (_, number, _) in PARTS.items():
        parser.add_argument(f"--{name}", type=int, default=number, metavar="N", help=f"default {number}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, metavar="M", help="stop after about so long; the next call goes on")
    parser.add_argument("--fresh", action="store_true", help="begin again instead of going on")
    parser.add_argument("--output", type=Path, default=RESULTS / "kill_campaign.md", metavar="FILE")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # many short processes, of which some are forked
    torch.set_num_threads(1)
    record = Record("kill_campaign", {"seed": options.seed}, options.minutes, options.fresh)
    with tempfile.TemporaryDirectory() as folder:
        campaign: Campaign | None = None
        for name in options.parts or PARTS:
            part, _, counted = PARTS[name]
            wanted = getattr(options, name)
            while not record.late and record.counts.get(name, {}).get(counted or name, 0) < wanted:
                campaign = campaign or Campaign(Path(folder))
                with record.trying(name) as counts:
                    campaign.draw = random.Random(f"{options.seed}/{name}/{counts[counted or name]}")
                    if counted is None:
                        counts["wanted"] = wanted
                    part(campaign, counts)
                    del counts["wanted"]
                    record.failures, campaign.failures = record.failures + campaign.failures, []
                print(f"{name}: {described(counts)}", flush=True)
                write(options.output, record)
    return min(sum(count for part in record.counts.values() for what, count in part.items() if what.isupper()), 1)


def described(counts: Counts) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count or what.isupper())


def write(path: Path, record: Record) -> None:
    """Write the results so far."""
    lines = ["| part | what is done | what happened | minutes |", "|---|---|---|---|"]
    for name, counts in record.counts.items():
        what = " ".join((PARTS[name][0].__doc__ or "").partition("\n\n")[0].split())
        lines.append(f"| {name} | {what} | {described(counts)} | {record.seconds[name] / 60:.1f} |")
    if record.failures:
        lines += ["", "What happened that must not:", "", *(f"- {failure}" for failure in record.failures)]
    table = "\n".join(lines)
    path.write_text(f"# Kill and soak campaign\n\n{record.head()}\nWhat must not happen is in capitals.\n\n{table}\n")


if __name__ == "__main__":
    sys.exit(main())
