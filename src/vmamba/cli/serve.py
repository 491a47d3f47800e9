"""``vmamba serve``: a classifier behind HTTP."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from vmamba.checkpoints.info import read_info
from vmamba.cli.arguments import add_device, positive
from vmamba.cli.precision import add_precision, inference_device
from vmamba.errors import MissingPackageError, OptionError
from vmamba.files import require_file
from vmamba.progress import remark
from vmamba_command import Terminated

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

EXAMPLES = """examples:
  vmamba serve --checkpoint runs/photos/weights/model.safetensors --port 8000
  curl --data-binary @photo.jpg localhost:8000/predict
  curl -F images=@one.jpg -F images=@two.jpg localhost:8000/predict

/try is a page to drop images on, /docs describes the interface, /health and /metrics are for machines."""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("serve", help="answer requests over HTTP", epilog=EXAMPLES)
    parser.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="a classifier, authors' or ours")
    parser.add_argument("--model", metavar="NAME", help="default: what the checkpoint says or looks like")
    parser.add_argument("--port", type=positive, default=8000, metavar="N", help="default 8000")
    parser.add_argument("--host", default="127.0.0.1", help="127.0.0.1 (default), or 0.0.0.0 for other machines, too")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names, one per line")
    parser.add_argument("--topk", type=positive, default=5, metavar="K", help="classes per image (default 5)")
    parser.add_argument("--image-size", type=positive, metavar="PIXELS", help="of the input")
    parser.add_argument(
        "--batch-size", type=positive, default=16, metavar="N", help="requests computed together (default 16)"
    )
    parser.add_argument(
        "--batch-timeout", type=float, default=5, metavar="MS", help="that a request waits for others (default 5)"
    )
    parser.add_argument("--timeout", type=positive, default=30, metavar="S", help="then comes 504 (default 30)")
    parser.add_argument(
        "--max-bytes", type=positive, default=32 << 20, metavar="N", help="of a request (default 32 Mi)"
    )
    parser.add_argument(
        "--max-pixels", type=positive, default=50_000_000, metavar="N", help="of an image (default 50 million)"
    )
    add_device(parser)
    add_precision(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    try:
        from vmamba.integrations.serving import server
    except ImportError as error:
        if error.name not in ("litserve", "fastapi"):
            raise
        raise MissingPackageError("litserve", "serve") from None
    if options.host not in ("127.0.0.1", "0.0.0.0", "::") or not 1024 <= options.port <= 65535:
        raise OptionError("--host must be 127.0.0.1, 0.0.0.0 or ::, and --port from 1024 to 65535")
    target = inference_device(options)
    require_file(options.checkpoint)
    info = read_info(options.checkpoint)
    if info is not None and info.task != "classification":
        raise OptionError(f"{options.checkpoint}: is for {info.task}; classifiers can be served")
    built = server(
        options.checkpoint,
        options.model,
        labels=options.labels,
        topk=options.topk,
        image_size=options.image_size,
        batch_size=options.batch_size,
        batch_timeout=options.batch_timeout / 1000,
        timeout=options.timeout,
        max_bytes=options.max_bytes,
        max_pixels=options.max_pixels,
        device=target.type,
        precision=options.precision,
    )
    main = os.getpid()

    def stop(*_: object) -> None:
        if os.getpid() != main:  # a process that was forked has done its work
            os._exit(0)
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    remark(f"serving on port {options.port}: POST /predict; /try, /docs, /health, /metrics")
    try:
        built.run(
            port=options.port, host=options.host, log_level="warning", generate_client_file=False, num_api_servers=1
        )
    finally:
        signal.signal(signal.SIGTERM, before)
    remark("stopped; every request that was taken has been answered")
    return 0
