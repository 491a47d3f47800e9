"""Classification on a Ray cluster: a `Predictor` for ``ray.data``, and the images of a command over many actors.

Rows come back to the process that asked, which writes them as without Ray: so nothing is lost when an actor dies (Ray
does its batches again), nor when this process does (``--resume``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vmamba.data.sources import ImageRef
from vmamba.data.tar import Place
from vmamba.errors import ClusterError, ImageError, MissingPackageError
from vmamba.frozen import freeze
from vmamba.tasks.classification.prediction import class_names, eval_transform
from vmamba.zoo import model_from_checkpoint

#: Images whose names are on the cluster at a time.
WAVE = 1_000_000


class Predictor:
    """Images → classes, for ``ray.data.Dataset.map_batches(Predictor, …)``.

    Batches have columns ``bytes`` and ``path``, as ``ray.data.read_binary_files(…, include_paths=True)`` gives them, or
    those of `columns_of`. Results have ``image``, ``predictions`` (a list of ``index``, ``label``, ``probability``) and
    ``error``; one of the two is None.

    Args:
        checkpoint: Weights, at a path that every node sees.
        model: Name of the architecture; None for what the checkpoint says.
        labels: See `vmamba.tasks.classification.prediction.class_names`.
        topk: Classes per image.
        image_size: Of the input; None for the model's own.
        max_pixels: See `vmamba.data.images.read_image`.
        threads: Threads that decode and, on a CPU, compute.
        precision: Of the frozen model; see `vmamba.freeze`.
    """

    def __init__(
        self,
        checkpoint: str,
        model: str | None = None,
        *,
        labels: str | None = None,
        topk: int = 5,
        image_size: int | None = None,
        max_pixels: int | None = None,
        threads: int = 1,
        precision: str = "float32",
    ) -> None:
        torch.set_num_threads(threads)
        loaded: Any = model_from_checkpoint(Path(checkpoint), model, in_chans=3).eval()
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.transform, self.topk, self.max_pixels = eval_transform(loaded, image_size), topk, max_pixels
        self.names = class_names(loaded.num_classes, Path(labels) if labels else None, loaded.info.class_names)
        self.model: Any = freeze(loaded.to(self.device), precision)
        self.pool = ThreadPoolExecutor(threads)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Classify a batch; an image that cannot be read has an ``error``."""
        refs = [_ref(row) for row in _rows(batch)]
        inputs = list(self.pool.map(self._input, refs))
        good = [x for x in inputs if isinstance(x, torch.Tensor)]
        ranked = iter(self._ranked(torch.stack(good)) if good else [])
        images = np.array([ref.name for ref in refs], object)
        predictions, errors = np.empty(len(refs), object), np.empty(len(refs), object)
        for i, x in enumerate(inputs):
            if isinstance(x, torch.Tensor):
                predictions[i] = next(ranked)
            else:
                errors[i] = x
        return {"image": images, "predictions": predictions, "error": errors}

    def _input(self, ref: ImageRef) -> torch.Tensor | str:
        try:
            return self.transform(ref.read(self.max_pixels))
        except ImageError as error:
            return str(error)

    @torch.inference_mode()
    def _ranked(self, inputs: torch.Tensor) -> list[list[dict[str, Any]]]:
        logits = self.model(inputs.to(self.device)).float()
        probabilities, classes = logits.softmax(-1).topk(min(self.topk, logits.shape[-1]))
        return [
            [{"index": i, "label": self.names[i], "probability": p} for i, p in zip(row, ps, strict=True)]
            for row, ps in zip(classes.tolist(), probabilities.tolist(), strict=True)
        ]


def columns_of(ref: ImageRef) -> dict[str, Any]:
    """An image as a row of a data set."""
    start, size = ref.place or (-1, -1)
    return {
        "path": ref.path,
        "name": ref.name,
        "start": start,
        "size": size,
        "bytes": ref.content,
        "problem": ref.problem,
    }


def classify_on_ray(
    images: Iterable[ImageRef],
    options: dict[str, Any],
    *,
    address: str | None = None,
    actors: int | None = None,
    batch_size: int = 16,
) -> Iterator[dict[str, Any]]:
    """Classify images on a cluster.

    Args:
        images: Listed here, read by the actors.
        options: Of `Predictor`.
        address: Of the cluster; None for one on this machine, which ends with the last row.
        actors: Processes that predict; by default one a GPU of the cluster, or one for every CPU.
        batch_size: Images per forward pass.

    Yields:
        Rows of `Predictor`, in the order in which they are done.

    Raises:
        MissingPackageError: If Ray is not installed.
        ClusterError: If the cluster cannot be reached, or stops; rows that were yielded stay good.
    """
    try:
        import ray
        import ray.data
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        raise MissingPackageError("ray", "ray") from None
    began = not ray.is_initialized()
    if began:
        local = {} if address else {"include_dashboard": False, "object_store_memory": 256 << 20}
        try:
            ray.init(address=address or "local", log_to_driver=False, logging_level="error", **local)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f"at {address}" if address else "on this machine"
            raise ClusterError(f"no Ray cluster {where}: {error}; start one, or correct its address") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = 0
    try:
        gpus, cpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("GPU", "CPU"))
        count = actors or gpus or cpus
        resources: dict[str, Any] = {"num_gpus": 1} if gpus else {"num_cpus": options.get("threads", 1)}
        listing = iter(images)
        while wave := list(islice(listing, WAVE)):
            blocks = max(count, -(-len(wave) // (4 * batch_size)))
            rows = ray.data.from_items([columns_of(ref) for ref in wave], override_num_blocks=min(blocks, len(wave)))
            done = rows.map_batches(
                Predictor, fn_constructor_kwargs=options, batch_size=batch_size, concurrency=count, **resources
            )
            yield from done.iter_rows()
    except RayTaskError:  # of our own code, and of its class
        raise
    except RayError as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ClusterError(f"the Ray cluster stopped: {reason}; go on with --resume") from error
    finally:
        if began:
            ray.shutdown()


def _rows(batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for values in zip(*batch.values(), strict=True):
        yield dict(zip(batch, values, strict=True))


def _ref(row: dict[str, Any]) -> ImageRef:
    path, content = str(row["path"]), row.get("bytes")
    start = int(row.get("start", -1))
    return ImageRef(
        str(row.get("name", path)),
        "",
        path,
        Place(start, int(row["size"])) if start >= 0 else None,
        content if isinstance(content, bytes) else None,
        str(row.get("problem", "")),
    )
