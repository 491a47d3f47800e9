"""``vmamba serve``, over loopback: right answers, refusals in one line, and nothing lost at its end."""

from __future__ import annotations

import base64
import http.client
import io
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vmamba
from support.runs import free_port
from vmamba.checkpoints.saving import save_weights
from vmamba.tasks.classification.prediction import eval_transform

pytest.importorskip("litserve")
pytestmark = [pytest.mark.slow, pytest.mark.network]
MAX_BYTES = 100_000
PROGRAM = "import vmamba_command; raise SystemExit(vmamba_command.main())"


def jpeg(colour: tuple[int, int, int]) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (50, 40), colour).save(content, "JPEG")
    return content.getvalue()


def bomb() -> bytes:
    """Few bytes, many pixels."""
    content = io.BytesIO()
    Image.new("1", (10_000, 10_001)).save(content, "PNG")
    return content.getvalue()


class Service:
    def __init__(self, weights: Path, *options: str) -> None:
        self.port = free_port()
        command = [sys.executable, "-c", PROGRAM, "serve", "--checkpoint", str(weights), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--image-size", "32", "--max-bytes", str(MAX_BYTES), "--device", "cpu", *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if self.ask("GET", "/health")[0] == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError(self.process.communicate())

    def ask(self, method: str, path: str, body: bytes = b"", kind: str = "image/jpeg") -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body or None, {"content-type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def predict(self, body: bytes, kind: str = "image/jpeg") -> Any:
        status, content = self.ask("POST", "/predict", body, kind)
        return status, json.loads(content)

    def stop(self) -> tuple[int, str, str]:
        self.process.send_signal(signal.SIGTERM)
        out, error = self.process.communicate(timeout=60)
        return self.process.returncode, out, error


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = vmamba.create_model("vmamba_pico", num_classes=3)
    return save_weights(model, tmp_path_factory.mktemp("weights") / "model.safetensors", class_names=["a", "b", "c"])


@pytest.fixture(scope="module")
def service(weights: Path) -> Iterator[Service]:
    running = Service(weights, "--topk", "3")
    yield running
    running.stop()


def expected(weights: Path, content: bytes) -> dict[str, float]:
    model = vmamba.create_model("vmamba_pico", num_classes=3, checkpoint=weights).eval()
    with Image.open(io.BytesIO(content)) as image, torch.no_grad():
        probabilities = model(eval_transform(model, 32)(image.convert("RGB"))[None]).softmax(1)[0]
    return dict(zip("abc", probabilities.tolist(), strict=True))


def test_every_form_of_request_has_the_model_s_answers(service: Service, weights: Path) -> None:
    contents = [jpeg((250, 0, 0)), jpeg((0, 0, 250))]
    part = b'--X\r\nContent-Disposition: form-data; name="images"; filename="i.jpg"\r\n\r\n%b\r\n'
    form = b"".join(part % content for content in contents) + b"--X--\r\n"
    texts = json.dumps({"images": [base64.b64encode(content).decode() for content in contents]}).encode()
    for body, kind in ((form, "multipart/form-data; boundary=X"), (texts, "application/json")):
        status, answer = service.predict(body, kind)
        assert status == 200
        for entries, content in zip(answer["predictions"], contents, strict=True):
            assert {e["label"]: e["probability"] for e in entries} == pytest.approx(
                expected(weights, content), rel=1e-4
            )
    status, answer = service.predict(contents[0])
    assert (status, len(answer["predictions"])) == (200, 1)


REFUSED = [
    (b"no image", "image/jpeg", 400, "not an image"),
    (b"", "image/jpeg", 400, "send an image"),
    (bomb(), "image/png", 400, "more than 50,000,000 pixels"),
    (jpeg((0, 0, 0))[:300], "image/jpeg", 400, "cannot read the image image 1"),
    (b"{}", "application/json", 400, "the JSON must be"),
    (b'{"images": ["?"]}', "application/json", 400, "the JSON must be"),
    (b"[" * 90_000, "application/json", 400, "the JSON must be"),
    (b"--", "multipart/form-data", 400, "the form cannot be read"),
    (bytes(MAX_BYTES + 1), "image/jpeg", 413, "more than 100,000 bytes"),
    (json.dumps({"images": ["aGk="] * 65}).encode(), "application/json", 413, "65 images in one request"),
]


@pytest.mark.parametrize(("body", "kind", "status", "message"), REFUSED)
def test_refusals_are_one_line(body: bytes, kind: str, status: int, message: str, service: Service) -> None:
    got, answer = service.predict(body, kind)
    assert got == status
    assert message in answer["detail"]
    assert "\n" not in answer["detail"]


def test_bad_requests_disturb_no_good_ones(service: Service) -> None:
    good = jpeg((9, 200, 30))
    _, truth = service.predict(good)
    answers: list[Any] = []

    def ask() -> None:
        answers.extend(service.predict(good) for _ in range(10))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for body, kind, status, _ in random.Random(0).choices(REFUSED, k=40):
        assert service.predict(body, kind)[0] == status
    for thread in threads:
        thread.join()
    assert len(answers) == 20
    for status, answer in answers:
        assert status == 200
        probabilities = [e["probability"] for e in answer["predictions"][0]]
        assert probabilities == pytest.approx([e["probability"] for e in truth["predictions"][0]], rel=1e-4)


def test_what_machines_and_people_look_at(service: Service) -> None:
    assert service.ask("GET", "/health") == (200, b"ok")
    assert b"Drop images here" in service.ask("GET", "/try")[1]
    schema = json.loads(service.ask("GET", "/openapi.json")[1])
    assert "multipart/form-data" in schema["paths"]["/predict"]["post"]["requestBody"]["content"]

    def count(status: int) -> int:
        lines = service.ask("GET", "/metrics")[1].decode().splitlines()
        return sum(
            int(line.split()[1]) for line in lines if line.startswith(f'vmamba_requests_total{{status="{status}"')
        )

    before = count(200), count(400)
    service.predict(jpeg((1, 2, 3)))
    service.predict(b"x")
    assert (count(200), count(400)) == (before[0] + 1, before[1] + 1)


def test_terminated_it_answers_what_it_has_taken(weights: Path) -> None:
    service = Service(weights, "--batch-size", "4", "--batch-timeout", "200")
    statuses: list[int] = []
    refused: list[OSError] = []

    def ask() -> None:
        for _ in range(50):
            connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=60)
            try:
                connection.connect()
            except OSError as error:  # the server takes no more requests
                refused.append(error)
                return
            try:
                connection.request("POST", "/predict", jpeg((0, 0, 0)), {"content-type": "image/jpeg"})
                statuses.append(connection.getresponse().status)
            except ConnectionResetError:  # connected, not taken yet
                refused.append(ConnectionResetError())
                return
            except http.client.RemoteDisconnected:
                refused.append(ConnectionResetError())
                return
            finally:
                connection.close()

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    while len(statuses) < 8:
        time.sleep(0.01)
    status, out, error = service.stop()
    for thread in threads:
        thread.join()
    assert (status, error) == (0, "")
    assert "every request that was taken has been answered" in out
    assert set(statuses) == {200}
    assert refused


def test_errors(weights: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from vmamba.cli import main

    for arguments, message in (
        (("--checkpoint", "none.pth"), "none.pth: No such file"),
        (("--checkpoint", str(weights), "--port", "80"), "--port from 1024 to 65535"),
    ):
        assert main(["serve", *arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
