"""A classifier behind HTTP, on LitServe: requests are decoded where they arrive, and computed together.

What is wrong with a request is said before it is queued, so that no request disturbs another.
"""

import asyncio
import base64
import inspect
import io
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import litserve
import numpy as np
import torch
from fastapi import Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, PlainTextResponse
from PIL import Image
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vmamba.data.images import read_image
from vmamba.errors import ImageError
from vmamba.frozen import freeze
from vmamba.tasks.classification.prediction import Transform, class_names, eval_transform
from vmamba.zoo import model_from_checkpoint

PAGE = Path(__file__).with_name("serving.html")
#: Images of one request.
MAX_IMAGES = 64


class Reader:
    """Reads the images of a request: its body, the files of a form, or base64 text in JSON (``{"images": […]}``).

    Args:
        transform: Image → input of the model.
        max_bytes: Limit of a request.
        max_pixels: See `vmamba.data.images.read_image`.
        threads: Threads that decode.
    """

    def __init__(self, transform: Transform, max_bytes: int, max_pixels: int | None, threads: int) -> None:
        self.transform, self.max_bytes, self.max_pixels = transform, max_bytes, max_pixels
        self._threads = threads
        self._pool: ThreadPoolExecutor | None = None

    async def __call__(self, request: Request) -> Any:
        """Inputs (B, 3, S, S) of the model.

        Raises:
            HTTPException: 400 for what is no image, 413 for too much.
        """
        contents = await self._contents(request)
        if not contents or not all(contents):
            raise HTTPException(400, 'send an image as the body, files of a form, or JSON: {"images": [base64, …]}')
        if len(contents) > MAX_IMAGES:
            raise HTTPException(413, f"{len(contents)} images in one request; at most {MAX_IMAGES}")
        self._pool = self._pool or ThreadPoolExecutor(self._threads)  # in the process that serves
        loop = asyncio.get_running_loop()
        names = [f"image {i}" for i in range(1, len(contents) + 1)]
        inputs = await asyncio.gather(
            *(loop.run_in_executor(self._pool, self._input, *pair) for pair in zip(names, contents, strict=True))
        )
        return np.stack(inputs)

    def _input(self, name: str, content: bytes) -> Any:
        try:
            image: Image.Image = read_image(name, io.BytesIO(content), max_pixels=self.max_pixels)
        except ImageError as error:
            raise HTTPException(400, str(error)) from None
        return self.transform(image).numpy()

    async def _contents(self, request: Request) -> list[bytes]:
        if int(request.headers.get("content-length") or 0) > self.max_bytes:
            raise self._too_large()
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.max_bytes:
                raise self._too_large()
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return await self._form(request, bytes(body))
        if kind == "application/json":
            return self._json(bytes(body))
        return [bytes(body)]

    async def _form(self, request: Request, body: bytes) -> list[bytes]:
        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            async with Request(request.scope, receive).form(max_files=MAX_IMAGES) as form:
                return [await file.read() for _, file in form.multi_items() if not isinstance(file, str)]
        except Exception as error:  # parsers raise nearly anything on a broken form
            reason = " ".join(str(getattr(error, "detail", error)).split())
            raise HTTPException(400, f"the form cannot be read: {reason}") from None

    def _json(self, body: bytes) -> list[bytes]:
        try:
            images = json.loads(body)["images"]
            return [base64.b64decode(image, validate=True) for image in images]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise HTTPException(400, 'the JSON must be {"images": [base64, …]}') from None

    def _too_large(self) -> HTTPException:
        return HTTPException(413, f"the request has more than {self.max_bytes:,} bytes")


class Classifier(litserve.LitAPI):
    """The model in a process of its own: batches of requests → the most probable classes of each image."""

    def __init__(
        self, load: Callable[[], Any], labels: Path | None, topk: int, read: Reader, precision: str, **options: Any
    ) -> None:
        super().__init__(**options)
        self.load, self.labels, self.topk, self.precision = load, labels, topk, precision
        self.decode_request = _Decode(read)

    def setup(self, device: str) -> None:
        """Load the model."""
        model = self.load()
        self.model = freeze(model.to(device), self.precision)
        self.names = class_names(model.num_classes, self.labels, model.info.class_names)
        self.target = device

    def batch(self, inputs: Sequence[Any]) -> list[Any]:
        """Requests as they are; `predict` joins them."""
        return list(inputs)

    @torch.inference_mode()
    def predict(self, x: Any, **_: Any) -> Any:
        """Requests' inputs (B_i, 3, S, S) → an answer each."""
        requests = x if isinstance(x, list) else [x]
        logits = self.model(torch.from_numpy(np.concatenate(requests)).to(self.target)).float()
        probabilities, classes = logits.softmax(-1).topk(min(self.topk, logits.shape[-1]))
        ranked = [
            [{"index": i, "label": self.names[i], "probability": p} for i, p in zip(row, ps, strict=True)]
            for row, ps in zip(classes.tolist(), probabilities.tolist(), strict=True)
        ]
        answers = []
        for request in requests:
            answers.append({"predictions": ranked[: len(request)]})
            ranked = ranked[len(request) :]
        return answers if isinstance(x, list) else answers[0]

    def unbatch(self, output: Any) -> Any:
        """The answers are separate already."""
        return output


class _Decode:
    """A `decode_request` whose signature has FastAPI read the request by `read`, where requests arrive."""

    def __init__(self, read: Reader) -> None:
        self.read = read
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        parameter = inspect.Parameter("request", kind, annotation=Annotated[np.ndarray, Depends(read)])
        self.__signature__ = inspect.Signature([parameter])

    def __reduce__(self) -> Any:
        return _Decode, (self.read,)

    def __call__(self, request: Any) -> Any:
        return request


class Metrics:
    """Middleware that counts requests and their time, for ``/metrics`` in Prometheus' format."""

    BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

    def __init__(self, app: ASGIApp, path: str) -> None:
        self.app, self.path = app, path
        self.requests: dict[int, int] = {}
        self.buckets = [0] * len(self.BOUNDS)
        self.seconds, self.active = 0.0, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] == "/metrics":
            return await PlainTextResponse(self.text(), media_type="text/plain; version=0.0.4")(scope, receive, send)
        if scope["type"] != "http" or scope["path"] != self.path:
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 500

        async def observe(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self.active += 1
        try:
            await self.app(scope, receive, observe)
        finally:
            self.active -= 1
            self.requests[status] = self.requests.get(status, 0) + 1
            seconds = time.perf_counter() - start
            self.seconds += seconds
            self.buckets = [n + (seconds <= bound) for n, bound in zip(self.buckets, self.BOUNDS, strict=True)]

    def text(self) -> str:
        """The counts."""
        lines = ["# TYPE vmamba_requests_total counter"]
        lines += [f'vmamba_requests_total{{status="{code}"}} {n}' for code, n in sorted(self.requests.items())]
        lines += ["# TYPE vmamba_requests_active gauge", f"vmamba_requests_active {self.active}"]
        lines += ["# TYPE vmamba_request_seconds histogram"]
        lines += [
            f'vmamba_request_seconds_bucket{{le="{bound}"}} {n}'
            for bound, n in zip(self.BOUNDS, self.buckets, strict=True)
        ]
        total = sum(self.requests.values())
        lines += [f'vmamba_request_seconds_bucket{{le="+Inf"}} {total}', f"vmamba_request_seconds_count {total}"]
        return "\n".join([*lines, f"vmamba_request_seconds_sum {self.seconds}", ""])


class Server(litserve.LitServer):
    """LitServe's server, which answers all requests that it has taken before it stops."""

    def _perform_graceful_shutdown(self, manager: Any, uvicorn_workers: Any, shutdown_reason: str = "normal") -> None:
        for process in uvicorn_workers.values():  # before the model's process, which they wait for
            if process.is_alive():
                process.terminate()
        for process in uvicorn_workers.values():
            process.join(self.uvicorn_graceful_timeout)
        super()._perform_graceful_shutdown(manager, {}, shutdown_reason)


def server(
    checkpoint: Path,
    model: str | None = None,
    *,
    labels: Path | None = None,
    topk: int = 5,
    image_size: int | None = None,
    batch_size: int = 16,
    batch_timeout: float = 0.005,
    timeout: float = 30.0,
    max_bytes: int = 32 << 20,
    max_pixels: int | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Server:
    """A server of a classifier; ``run(port=…)`` starts it.

    Args:
        checkpoint: Weights.
        model: Name of the architecture; None for what the checkpoint says.
        labels: See `vmamba.tasks.classification.prediction.class_names`.
        topk: Classes per image.
        image_size: Of the input; None for the model's own.
        batch_size: Requests that are computed together.
        batch_timeout: Seconds that a request waits for others.
        timeout: Seconds after which a waiting request is answered 504.
        max_bytes: Limit of a request.
        max_pixels: Limit of an image; see `vmamba.data.images.read_image`.
        device: ``cpu`` or ``cuda``.
        precision: Of the frozen model; see `vmamba.freeze`.
    """
    load = _Loader(checkpoint, model)
    loaded = load()  # errors of the checkpoint show here, at once
    class_names(loaded.num_classes, labels, loaded.info.class_names)
    read = Reader(eval_transform(loaded, image_size), max_bytes, max_pixels, os.cpu_count() or 1)
    api = Classifier(load, labels, topk, read, precision, max_batch_size=batch_size, batch_timeout=batch_timeout)
    built = Server(
        api,
        accelerator=device.partition(":")[0],
        devices=1,
        timeout=timeout,
        middlewares=[(Metrics, {"path": api.api_path})],
        model_metadata={"checkpoint": checkpoint.name, "classes": loaded.num_classes, "task": "classification"},
    )
    built.app.title, built.app.version = "VMamba", "1"
    page = HTMLResponse(PAGE.read_text(encoding="utf-8"))
    built.app.add_api_route("/try", lambda: page, include_in_schema=False)
    image = {"schema": {"type": "string", "format": "binary"}}
    files = {"type": "object", "properties": {"images": {"type": "array", "items": image["schema"]}}}
    for route in built.app.routes:
        if getattr(route, "path", None) == api.api_path:
            route.openapi_extra = {
                "requestBody": {
                    "required": True,
                    "content": {
                        "image/*": image,
                        "multipart/form-data": {"schema": files},
                        "application/json": {"schema": files},
                    },
                }
            }
    return built


class _Loader:
    """Loads the model, in whichever process it is sent to."""

    def __init__(self, checkpoint: Path, model: str | None) -> None:
        self.checkpoint, self.model = checkpoint, model

    def __call__(self) -> Any:
        return model_from_checkpoint(self.checkpoint, self.model, in_chans=3).eval()
