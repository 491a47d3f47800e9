"""The ``vmamba`` command as far as it needs no PyTorch: ``vmamba --help`` and ``vmamba --version`` answer at once.

The rest is `vmamba.cli`. It lies in the package `vmamba`, whose import takes seconds because it registers the models in
timm; hence this package beside it. ``python -m vmamba`` imports `vmamba` first and is slower.
"""

from __future__ import annotations

import argparse
import atexit
import gc
import importlib.metadata
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

#: Every command, a module of `vmamba.cli`, and its line in ``vmamba --help``.
COMMANDS = {
    "models": "list the models",
    "env": "show versions, devices, and which scan kernels run and why",
    "predict": "classify images",
    "detect": "detect objects in images: boxes and masks",
    "segment": "find the class of every pixel",
    "embed": "turn images into vectors",
    "check-data": "look at a data set as training would: counts, faults, remarks",
    "train": "train or fine-tune a model",
    "tune": "search for better settings of a recipe",
    "evaluate": "measure a model on a validation split",
    "probe": "measure frozen features by simple classifiers on few labels",
    "analyze": "look inside models, and compare them",
    "serve": "answer requests over HTTP",
    "push": "put weights and a model card on the Hugging Face Hub",
    "pull": "download weights from the Hugging Face Hub",
    "export": "write a model as a file for other runtimes",
    "explore": "write a page that shows what the scans of a model look at",
    "convert": "turn a checkpoint into safetensors with its description beside it",
    "shapes": "write pictures of shapes, to try detection and segmentation with",
    "demo": "train a small model on handwritten digits and look at its predictions",
    "completion": "print a script that completes commands in a shell",
}

EPILOG = """exit status:
  0    done
  1    done, but some images failed; they are listed at the end
  2    an error in the command, its data or its files, in one line (with --debug, and where it happened)
  3    train: the loss is not finite
  70   a bug: please report it with the text that it shows
  75   train: stopped after saving; --resume auto continues
  130  interrupted (Ctrl-C); results so far are kept
  141  whoever read the output closed it
  143  terminated (SIGTERM); results so far are kept

'vmamba COMMAND --help' shows the options of a command, and examples."""


#: Exit status after a signal.
STATUS: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
_MESSAGE: dict[int, str] = {signal.SIGINT: "vmamba: interrupted", signal.SIGTERM: "vmamba: terminated"}
#: Of a training run that was stopped and can be started again.
NOT_STARTED = 75


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived."""


class Parser(argparse.ArgumentParser):
    """A parser that leaves the lines of its epilog as they are."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": argparse.RawDescriptionHelpFormatter, **options})


def top_parser() -> tuple[argparse.ArgumentParser, Commands]:
    """The parser of ``vmamba``, and where its commands are added."""
    parser: argparse.ArgumentParser = Parser(
        prog="vmamba", description="VMamba, the visual state space model.", epilog=EPILOG
    )
    parser.add_argument("--version", action="version", version=f"vmamba {_version()}")
    return parser, parser.add_subparsers(required=True, metavar="COMMAND", title="commands")


def command_of(arguments: Sequence[str], commands: Mapping[str, str] = COMMANDS) -> str | None:
    """The command that is named, or None."""
    name = next((argument for argument in arguments if not argument.startswith("-")), None)
    return name if name in commands else None


class _End:
    """The last thing that the process does: it leaves at once. To take PyTorch apart would cost a second."""

    status = 1

    def __call__(self) -> None:
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(self.status)


def main() -> int:
    """Run the console script; returns the exit status, with which the process will end."""
    end = _End()
    atexit.register(end)  # the first that is registered runs last, after all threads have ended
    try:
        end.status = _run()
    except SystemExit as leaving:
        end.status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        raise
    return end.status


def _run() -> int:
    for number in STATUS:
        signal.signal(number, _leave)
    if command_of(sys.argv[1:]) is None:
        parser, commands = top_parser()
        for name, line in COMMANDS.items():
            commands.add_parser(name, help=line)
        parser.parse_args()  # shows the help, the version, or an error
    gc.disable()  # what is imported stays; to look through it again and again for garbage would cost a second
    from vmamba.cli import main as run

    return run(when_imported=_begin)


def interrupted(interruption: KeyboardInterrupt) -> int:
    """Say that the command was interrupted; returns the exit status."""
    number = signal.SIGTERM if isinstance(interruption, Terminated) else signal.SIGINT
    print(_MESSAGE[number], file=sys.stderr)
    return STATUS[number]


def _leave(number: int, _: object) -> None:
    """End at once: nothing is begun, and modules that are being imported may catch what would be raised."""
    os.write(2, f"{_MESSAGE[number]}\n".encode())
    os._exit(NOT_STARTED if command_of(sys.argv[1:]) == "train" else STATUS[number])


def _begin() -> None:
    """Everything is imported: collect garbage, of what comes from now on, and raise at signals."""
    gc.freeze()
    gc.enable()
    signal.signal(signal.SIGTERM, _terminate)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _terminate(*_: object) -> None:
    raise Terminated


def _version() -> str:
    try:
        return importlib.metadata.version("vmamba")
    except importlib.metadata.PackageNotFoundError:  # run from its sources
        return "(not installed)"
