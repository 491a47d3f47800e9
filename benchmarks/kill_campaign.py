"""Runs that are killed, told to stop, run out of disk or lose a process: what is left, and whether they end alike.

    python benchmarks/kill_campaign.py                       # everything, about two hours on two cores
    python benchmarks/kill_campaign.py kills --kills 10      # one part, fewer trials

A tiny classifier is trained on images drawn here. After every blow the same command with ``--resume auto`` must go on;
the weights, their average, the optimiser's state and the losses of every step must be those of a run that nobody
disturbed, bit for bit. Needs a system with `fork`, and the right to mount a small disk that gets full.
Results: benchmarks/results/kill_campaign.md.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
import yaml
from paired import RESULTS, environment

from vmamba.cli import main as vmamba
from vmamba.data.images import find_images
from vmamba.tasks.classification.prediction import eval_transform, predict
from vmamba.zoo import create_model

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


class Campaign:
    """Trials around one undisturbed run.

    Args:
        folder: For everything.
        seed: Of the moments of the blows.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        from support.runs import write_images

        self.folder, self.draw = folder, random.Random(seed)
        self.images, self.recipe = folder / "images", folder / "recipe.yaml"
        write_images(self.images, "train", 16)
        write_images(self.images, "val", 4)
        self.recipe.write_text(yaml.safe_dump(RECIPE))
        begin = time.monotonic()
        if self.wait(self.fork(folder / "undisturbed")):
            raise SystemExit((folder / "undisturbed.log").read_text())
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
            return pid
        os.setpgid(0, 0)
        log = os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(log, stream)
        before()
        try:
            os._exit(vmamba(self.arguments(output)))
        except BaseException:
            os._exit(70)

    def wait(self, pid: int) -> int:
        """The exit status of a process, negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def finish(self, output: Path, counts: Counts) -> None:
        """Continue until the run is done, and compare it."""
        status = self.wait(self.fork(output))
        counts[
            "continued to the same end" if status == 0 and digest(output) == self.truth else "ENDED DIFFERENTLY"
        ] += 1
        leftovers = [p for p in output.rglob("*") if p.name.startswith((".writing-", ".step_"))]
        counts["LEFTOVERS"] += bool(leftovers)
        counts["TRACEBACKS"] += "Traceback" in output.with_suffix(".log").read_text()
        shutil.rmtree(output)

    # ----------------------------------------------------------------------------------------------------------------
    # The parts

    def kills(self, number: int) -> Counts:
        """``kill -9`` at random moments, every third inside the writing of a file; several a run."""
        counts: Counts = Counter()
        run = 0
        while counts["kills"] < number:
            output = self.folder / "kills" / str(run)
            run += 1
            while counts["kills"] < number:
                pid = self.fork(output)
                inside = self.draw.random() < 1 / 3
                time.sleep(self.draw.uniform(0, 0.6 * self.seconds))
                if inside:
                    wait_until(lambda output=output: writing(output), self.seconds)
                os.kill(pid, signal.SIGKILL)
                status = self.wait(pid)
                if status != -signal.SIGKILL:
                    break  # it was done before
                counts["kills"] += 1
                counts["inside the writing of a file"] += writing(output)
                kill_group(pid)
            self.finish(output, counts)
        counts["runs"] = run
        return counts

    def terms(self, number: int) -> Counts:
        """SIGTERM at random moments of a run's life, to the process or its group."""
        counts: Counts = Counter()
        while counts["signals"] < number:
            output = self.folder / "terms" / str(counts["runs"])
            counts["runs"] += 1
            while counts["signals"] < number:
                pid = self.fork(output)
                time.sleep(self.draw.uniform(0.05, 1.1 * self.seconds))
                group = self.draw.random() < 0.5
                (os.killpg if group else os.kill)(pid, signal.SIGTERM)
                status = self.wait(pid)
                counts["signals"] += 1
                counts[f"exit status {status}"] += 1
                if status == 0:
                    break
            self.finish(output, counts)
        return counts

    def starts(self, number: int) -> Counts:
        """SIGTERM within the first seconds of a new process, imports included, started as people do."""
        counts: Counts = Counter()
        program = "import sys; from vmamba_command import main; sys.exit(main())"
        begin = time.monotonic()
        subprocess.run(
            [sys.executable, "-c", program, "train", "--print-config"], stdout=subprocess.DEVNULL, check=True
        )
        seconds = time.monotonic() - begin
        for i in range(number):
            output = self.folder / "starts" / str(i)
            process = subprocess.Popen(
                [sys.executable, "-c", program, *self.arguments(output)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            time.sleep(self.draw.uniform(0.15, seconds + 0.5 * self.seconds))
            process.terminate()
            _, error = process.communicate()
            counts["signals"] += 1
            counts[f"exit status {process.returncode}"] += 1
            counts["SILENT"] += process.returncode not in (0, 75) or (process.returncode == 75 and not error)
            if output.exists():
                self.finish_quietly(output, counts)
        return counts

    def finish_quietly(self, output: Path, counts: Counts) -> None:
        output.with_suffix(".log").touch()
        self.finish(output, counts)

    def disks(self, number: int) -> Counts:
        """A disk that is full at a random moment."""
        counts: Counts = Counter()
        for i in range(number):
            with small_disk(self.folder / f"disk{i}") as (disk, fill, empty):
                output = disk / "run"
                pid = self.fork(output)
                time.sleep(self.draw.uniform(0, 0.9 * self.seconds))
                fill(self.draw.randrange(200_000))
                status = self.wait(pid)
                empty()
                counts["full disks"] += 1
                counts[f"exit status {status}"] += 1
                self.finish(output, counts)
        return counts

    def processes(self, number: int) -> Counts:
        """Two processes under torchrun, one of which is killed at a random moment; torchrun starts both again."""
        from support.runs import children, losses

        counts: Counts = Counter()
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]

        def start(output: Path) -> subprocess.Popen[bytes]:
            command = [*launcher, "--max-restarts", "3", "-m", "vmamba", *self.arguments(output)]
            return subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
            )

        begin = time.monotonic()
        undisturbed = self.folder / "two" / "undisturbed"
        if start(undisturbed).wait():
            raise SystemExit("two processes do not train here")
        seconds, truth = time.monotonic() - begin, digest(undisturbed)
        for i in range(number):
            output = self.folder / "two" / str(i)
            process = start(output)
            wait_until(lambda output=output: bool(losses(output)), 5 * seconds)
            time.sleep(self.draw.uniform(0, 0.8 * self.seconds))
            workers = children(process.pid)
            if workers:
                os.kill(self.draw.choice(workers), signal.SIGKILL)
                counts["workers killed"] += 1
            same = process.wait() == 0 and digest(output) == truth
            counts["continued to the same end" if same else "ENDED DIFFERENTLY"] += 1
            shutil.rmtree(output)
        return counts

    def predictions(self, number: int) -> Counts:
        """Predictions in one process, whose memory must not grow."""
        model = create_model("vmamba_pico", num_classes=4)
        transform, paths = eval_transform(model, 64), find_images([self.images])
        taken: list[float] = []
        done = 0
        while done < number:
            done += sum(1 for _ in predict(model, paths, transform=transform, batch_size=16))
            taken.append(resident())
        settled = taken[len(taken) // 5 :]
        return Counter(
            {"predictions": done, "MB after a fifth": round(settled[0]), "MB at the end": round(settled[-1]),
             "MB at most since": round(max(settled))}
        )  # fmt: skip


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
    """A file is being written in the folder, or was when its writer died."""
    return any(output.rglob(".writing-*"))


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
        with ballast.open("wb") as file:
            file.write(b"x" * max(status.f_bavail * status.f_frsize - free, 0))

    try:
        yield place, fill, lambda: ballast.unlink(missing_ok=True)
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def resident() -> float:
    """Memory of this process, MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e6


PARTS = {
    "kills": (Campaign.kills, 100),
    "disks": (Campaign.disks, 20),
    "terms": (Campaign.terms, 50),
    "starts": (Campaign.starts, 50),
    "processes": (Campaign.processes, 10),
    "predictions": (Campaign.predictions, 10_000),
}


def main() -> int:
    """Run the parts and write down what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default all: {', '.join(PARTS)}")
    for name, (_, number) in PARTS.items():
        parser.add_argument(f"--{name}", type=int, default=number, metavar="N", help=f"default {number}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=RESULTS / "kill_campaign.md", metavar="FILE")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # many short processes, of which some are forked
    torch.set_num_threads(1)
    lines, bad = [], 0
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), options.seed)
        for name in options.parts or PARTS:
            part, _ = PARTS[name]
            begin = time.monotonic()
            counts = part(campaign, getattr(options, name))
            bad += sum(count for what, count in counts.items() if what.isupper())
            said = ", ".join(f"{count} {what}" for what, count in counts.items() if count or what.isupper())
            lines.append(f"| {name} | {(part.__doc__ or '').strip()} | {said} | {time.monotonic() - begin:.0f} s |")
            print(lines[-1], flush=True)
            write(options.output, lines)
    return min(bad, 1)


def write(path: Path, lines: list[str]) -> None:
    """Write the results so far."""
    head = "".join(f"- {name}: {value}\n" for name, value in environment().items())
    table = "\n".join(["| part | what is done | what happened | time |", "|---|---|---|---|", *lines])
    path.write_text(f"# Kill and soak campaign\n\n{head}\nWhat must not happen is in capitals.\n\n{table}\n")


if __name__ == "__main__":
    sys.exit(main())
