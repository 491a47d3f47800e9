"""The ``vmamba`` command: one module per subcommand, each with its arguments and what it does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from vmamba.cli import (
    analyze,
    check_data,
    convert,
    demo,
    detect,
    env,
    evaluate,
    models,
    predict,
    segment,
    shapes,
    train,
)
from vmamba.errors import VMambaError

COMMANDS = (models, env, predict, detect, segment, check_data, train, evaluate, analyze, convert, shapes, demo)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 where some inputs failed, 2 for an error."""
    options = _parser().parse_args(arguments)
    try:
        status: int = options.run(options)
    except (VMambaError, ValueError, OSError) as error:
        print(f"vmamba: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vmamba: interrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmamba", description="VMamba, the visual state space model.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return parser
