"""The command as a whole: help, exit statuses, errors and bugs."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from support.commands import Fails, Run
from support.forked import Forked, module, run_forked
from vmamba.cli import _parser, analyze, main, models, top_parser
from vmamba_command import COMMANDS

pytestmark = pytest.mark.slow

SCRIPT = "import sys; from vmamba_command import main; sys.exit(main())"
HEAVY = ("torch", "timm", "vmamba", "rich", "numpy", "matplotlib")


def script(*arguments: object, code: str = SCRIPT) -> subprocess.CompletedProcess[str]:
    """The console script, in a process of its own."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


IMPORTED = f"""
import sys
from vmamba_command import main
try:
    main()
finally:
    print(*[name for name in {HEAVY} if name in sys.modules])
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["predcit", "x.png"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    result = script(*arguments, code=IMPORTED)
    assert result.returncode == (0 if arguments and arguments[0].startswith("--") else 2)
    assert result.stdout.splitlines()[-1] == ""
    if arguments == ["--help"]:
        assert all(f"    {name}" in result.stdout for name in COMMANDS)
        assert "exit status:" in result.stdout
    if arguments[:1] == ["predcit"]:
        assert "invalid choice: 'predcit'" in result.stderr


@pytest.mark.parametrize(
    ("package", "table"),
    [("vmamba.cli", COMMANDS), ("vmamba.cli.analyze", analyze.COMMANDS)],
    ids=["vmamba", "analyze"],
)
def test_lines_of_help_are_those_of_the_commands(package: str, table: dict[str, str]) -> None:
    _, commands = top_parser()
    for name in table:
        module = importlib.import_module(f"{package}.{name.replace('-', '_')}")
        if not hasattr(module, "COMMANDS"):
            module.add_to(commands)
    lines = {action.dest: action.help for action in commands._get_subactions()}
    assert lines == {name: line for name, line in table.items() if name in lines}
    assert len(lines) >= len(table) - 1


def test_other_commands_are_not_imported() -> None:
    probe = "print(*sorted(m.removeprefix('vmamba.cli.') for m in sys.modules if m.startswith('vmamba.cli.')))"
    result = run_forked(f"import sys; from vmamba.cli import main; main(['models']); {probe}")
    assert result.stdout.splitlines()[-1].split() == ["arguments", "explanation", "models", "printing"]


def test_help_of_every_command_has_its_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    for name in [*COMMANDS, *(f"analyze {analysis}" for analysis in analyze.COMMANDS)]:
        with pytest.raises(SystemExit, match="0"):
            main([*name.split(), "--help"])
        out = capsys.readouterr().out
        assert f"usage: vmamba {name} " in out
        if name != "analyze":
            assert "--debug" in out
            assert "--quiet" in out
            examples = re.findall(rf"^  (vmamba {name}\b.*)$", out.partition("examples:")[2], flags=re.MULTILINE)
            assert examples
            for example in examples:
                arguments = shlex.split(example.partition(" > ")[0], comments=True)[1:]
                assert callable(_parser(arguments).parse_args(arguments).run)


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: object) -> int:
        raise error

    monkeypatch.setattr(models, "run", run)


def test_a_bug_is_a_traceback_and_how_to_report_it(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(KeyError("x"), monkeypatch)
    assert run("models") == 70
    err = capsys.readouterr().err
    assert err.startswith("Traceback (most recent call last)")
    assert "KeyError: 'x'" in err
    assert err.splitlines()[-1].startswith("vmamba: this is a bug; please report it")


def test_errors_of_the_system_say_what_to_do(
    fails: Fails, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(OSError(30, "Read-only file system", "runs/a\nb"), monkeypatch)
    assert fails("models") == (
        r"vmamba: error: runs/a\nb: Read-only file system; choose a folder that can be written to"
    )
    raising(RuntimeError("CUDA out of memory. Tried to allocate 20 GiB"), monkeypatch)
    assert fails("models") == (
        "vmamba: error: not enough memory; take smaller images, fewer at once, or a machine with more"
    )


def test_debug_shows_where(run: Run, weights: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("predict", images, "--checkpoint", weights, "--topk", 0, "--debug") == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.splitlines()[-1].startswith("vmamba: error: topk")


def test_a_closed_pipe_ends_quietly(weights: Path, images: Path) -> None:
    for i in range(300):
        os.link(images / "0.png", images / f"again{i}.png")
    command = f"{sys.executable} -c '{SCRIPT}' predict {images} --checkpoint {weights} --image-size 32 --batch-size 1"
    result = subprocess.run(
        ["bash", "-c", f"{command} | head -n 1; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr) == (141, "")
    assert len(result.stdout.splitlines()) == 1


def test_termination_keeps_the_results(segmenter: Path, images: Path, tmp_path: Path) -> None:
    for i in range(500):
        os.link(images / "0.png", images / f"again{i}.png")
    output = tmp_path / "out"
    process = Forked(module("vmamba", ["segment", images, "--checkpoint", segmenter, "--output", output]))
    end = time.monotonic() + 120
    while len(list(output.glob("*_labels.png"))) < 3:
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert (process.returncode, err.splitlines()[-1]) == (143, "vmamba: terminated")
    records = [json.loads(line) for line in (output / "segments.jsonl").read_text().splitlines()]
    assert len(records) >= 2
    for record in records:
        with Image.open(record["labels"]) as labels:
            labels.load()
    assert not list(output.glob(".writing-*"))


FINISHING = """
import atexit, gc, sys, threading, time
import vmamba.cli, vmamba_command

def write(text):
    time.sleep(0.5)
    print(text, flush=True)

def run(*, when_imported):
    assert not gc.isenabled()
    when_imported()
    assert gc.isenabled()
    threading.Thread(target=write, args=["thread"]).start()
    atexit.register(write, "last")
    print("result", end=" ")
    return 1

vmamba.cli.main = run
sys.exit(vmamba_command.main())
"""


def test_process_ends_when_all_is_done() -> None:
    """Though it does not take apart what was imported."""
    result = script("models", code=FINISHING)
    assert (result.returncode, result.stdout, result.stderr) == (1, "result thread\nlast\n", "")


SWALLOWED = """
import os, signal, sys
import vmamba_command

class Importer:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            try:
                os.kill(os.getpid(), signal.Signals[sys.argv.pop()])
            except BaseException:  # as some modules do while they are imported
                pass

sys.meta_path.insert(0, Importer())
sys.exit(vmamba_command.main())
"""


@pytest.mark.parametrize(
    ("command", "number", "status", "message"),
    [
        ("train", "SIGTERM", 75, "vmamba: terminated\n"),
        ("predict", "SIGTERM", 143, "vmamba: terminated\n"),
        ("predict", "SIGINT", 130, "vmamba: interrupted\n"),
    ],
)
def test_signals_while_modules_are_imported(command: str, number: str, status: int, message: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    process = subprocess.run(
        [sys.executable, "-c", SWALLOWED, command, number], capture_output=True, text=True, check=False, env=environment
    )
    assert (process.returncode, process.stderr) == (status, message)
