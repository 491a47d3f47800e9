"""``python -m vmamba.compat script.py …``: run a script, or with ``-m`` a module, after `vmamba.compat.install`.

On a machine without a GPU, inside `vmamba.compat.on_cpu`.
"""

from __future__ import annotations

import contextlib
import os
import runpy
import sys

import torch

from vmamba.compat.install import install
from vmamba.compat.on_cpu import on_cpu

USAGE = "usage: python -m vmamba.compat (script.py | -m module) [argument …]"


def main(arguments: list[str]) -> None:
    """Run what the arguments name as ``__main__``, with ``sys.argv`` and ``sys.path`` as Python itself sets them."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        return
    if arguments[0] == "-m":
        if len(arguments) < 2:
            sys.exit(f"-m names no module; {USAGE}")
        sys.argv = arguments[1:]
        with _prepared():
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        return
    script = arguments[0]
    if not os.path.exists(script):
        sys.exit(f"{script}: no such file; {USAGE}")
    sys.argv = arguments
    if not getattr(sys.flags, "safe_path", False):  # there Python put the working directory, for -m
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    with _prepared():
        runpy.run_path(script, run_name="__main__")


def _prepared() -> contextlib.AbstractContextManager[None]:
    install()
    return contextlib.nullcontext() if torch.cuda.is_available() else on_cpu()


if __name__ == "__main__":
    main(sys.argv[1:])
