"""``vmamba embed``: images as vectors, the features that a classifier's last layer sees."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from vmamba.cli.arguments import add_device, positive
from vmamba.cli.precision import add_precision, inference_device
from vmamba.cli.predict import decoded
from vmamba.cli.results import Listing, add_work, results_of
from vmamba.errors import OptionError
from vmamba.frozen import freeze
from vmamba.model.backbone import VMamba
from vmamba.tasks.classification.prediction import eval_transform, outputs
from vmamba.zoo import create_model, model_from_checkpoint

if TYPE_CHECKING:
    from vmamba.cli.arguments import Commands

#: Columns of a row.
COLUMNS = {"image": "string", "embedding": ["float32"], "error": "string"}

EXAMPLES = """examples:
  vmamba embed photos --checkpoint model.safetensors --output embeddings.npy
  vmamba embed 'shards/*.tar' --model vmamba_tiny_s1l8 --pretrained --output embeddings.parquet --resume"""


def add_to(commands: Commands) -> None:
    parser = commands.add_parser("embed", help="turn images into vectors", epilog=EXAMPLES)
    add_work(parser, "embeddings.npy")
    parser.add_argument("--model", metavar="NAME", help="default: what the checkpoint says or looks like")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights, the authors' or ours")
    source.add_argument("--pretrained", action="store_true", help="the authors' weights for --model, downloaded once")
    parser.add_argument(
        "--image-size", type=positive, metavar="PIXELS", help="of the input (default: the checkpoint's, or 224)"
    )
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="default 16")
    add_device(parser)
    add_precision(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    listing = Listing(options)
    target = inference_device(options)
    model: Any = freeze(_backbone(options).to(target), options.precision)

    def pooled(images: Tensor) -> Tensor:
        features: Tensor = model.forward_head(model.forward_features(images), pre_logits=True)
        return features.float().cpu()

    with results_of(options, listing, COLUMNS, rows="embeddings.jsonl") as results:
        batches = decoded(options, listing, results, eval_transform(model, options.image_size))
        for names, features in outputs(model, batches, compute=pooled, device=target, on_error=results.fail):
            for name, vector in zip(names, features, strict=True):
                results.add({"image": name, "embedding": vector.tolist()}, [name])
    return results.finish(batches.waited)


def _backbone(options: argparse.Namespace) -> torch.nn.Module:
    if not options.pretrained:
        return model_from_checkpoint(options.checkpoint, options.model, in_chans=3)
    if options.model is None:
        raise OptionError("--pretrained needs --model NAME; 'vmamba models' lists them")
    return cast(VMamba, create_model(options.model, pretrained=True))
