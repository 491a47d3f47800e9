"""Compiled graphs for a GPU hold the Triton kernels; traced without a GPU, on tensors without data."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vmamba.model.variants import VARIANTS

pytestmark = pytest.mark.slow

pytest.importorskip("triton")


def run(script: str) -> str:
    """What a script prints in a process of its own: in Triton's interpreter there are no kernels to be seen."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [
        sys.executable,
        "-W",
        "ignore::UserWarning",
        "-c",
        script,
    ]  # Dynamo's, about functools.cache
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


TRACE = """
import torch
from torch._functorch.aot_autograd import aot_function
from torch._subclasses.fake_tensor import FakeTensorMode
from vmamba.ops import selective_scan, ss2d_scan, use_backend

ops = torch.ops.vmamba

def trace(label, run, operands):
    def show(graph, _):
        nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
        kernels = sum("triton_kernel_wrapper" in str(node.target) for node in nodes)
        operators = sum("vmamba" in str(node.target) for node in nodes)
        print(label, "kernels", kernels, "operators", operators)
        return graph
    found = aot_function(run, fw_compiler=show)(*operands)
    found, like = (found, operands[1:]) if isinstance(found, (tuple, list)) else ([found], operands)
    assert all((a.shape, a.dtype, a.device) == (b.shape, b.dtype, b.device) for a, b in zip(found, like))

for device in ("cuda", "cpu"):
    with FakeTensorMode(), torch.no_grad():
        def empty(*shape, dtype=torch.float32):
            return torch.empty(shape, dtype=dtype, device=device)
        half = torch.bfloat16
        image = [empty(2, 18, 16, 32, dtype=half), empty(2, 18, 16, 4, 6, dtype=half)]
        image += [empty(4, 32, 4), empty(4, 32, 1), empty(4, 32), empty(4, 32)]
        trace(f"{device} forward", ss2d_scan, image)
        dy = empty(2, 18, 16, 32, dtype=half)
        backward = lambda dy, *operands: ops.ss2d_scan_backward(dy, *operands, "cross")
        trace(f"{device} backward", backward, [dy, *image])
        if device == "cuda":
            three = [image[0], empty(2, 18, 16, 4, 10, dtype=half), image[2], empty(4, 32, 3), *image[4:]]
            trace("three states", ss2d_scan, three)
            with use_backend("chunked"):
                trace("chunked", ss2d_scan, image)
            trace("float64", ss2d_scan, [t.double() for t in image])
        layer = [dy, empty(32, 1, 3, 3), empty(32)]
        trace(f"{device} convolution", lambda *operands: ops.depthwise_silu(*operands), layer)
        trace(f"{device} convolution backward", ops.depthwise_silu_backward, [dy, *layer])
        u, A, B = empty(2, 8, 100), empty(8, 4), empty(2, 4, 100)
        trace(f"{device} sequence", lambda u, d, A, B, C: selective_scan(u, d, A, B, C), [u, u, A, B, B])
"""

EXPECTED = """\
cuda forward kernels 1 operators 0
cuda backward kernels 2 operators 0
three states kernels 3 operators 0
chunked kernels 0 operators 1
float64 kernels 0 operators 1
cuda convolution kernels 1 operators 0
cuda convolution backward kernels 2 operators 0
cuda sequence kernels 1 operators 0
cpu forward kernels 0 operators 1
cpu backward kernels 0 operators 1
cpu convolution kernels 0 operators 1
cpu convolution backward kernels 0 operators 1
cpu sequence kernels 0 operators 1
"""


def test_compiled_graphs_hold_the_kernels() -> None:
    assert run(TRACE) == EXPECTED


ONE_GRAPH = """
import torch, vmamba
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

counter = CompileCounter()
model = vmamba.create_model("vmamba_pico", device="meta")
with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
    model = model.to_empty(device="cuda").eval()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    compiled(torch.empty(2, 3, 224, 224, device="cuda"))
    with vmamba.ops.use_backend("chunked"):  # another graph, not the one that was there
        compiled(torch.empty(2, 3, 224, 224, device="cuda"))
print(counter.frame_count)
"""


def test_a_model_on_a_gpu_is_one_graph_for_each_backend() -> None:
    assert run(ONE_GRAPH) == "2\n"


FUSED = """
import torch, vmamba
from torch._subclasses.fake_tensor import FakeTensorMode

def show(graph, _):
    names = [str(node.target) for node in graph.graph.nodes]
    print("one graph", *(names.count(f"vmamba.{name}") for name in ("ss2d_scan", "depthwise_silu")))
    return graph

model = vmamba.create_model("vmamba_pico", device="meta")
with FakeTensorMode(allow_non_fake_inputs=True):
    model = model.to_empty(device="cuda")
    image = torch.empty(2, 3, 64, 64, device="cuda")
    for training in (True, False):
        with torch.set_grad_enabled(training):
            compiled = torch.compile(model.train(training), backend=show, fullgraph=True)
            print(compiled(image).requires_grad)
    model.stages[0].blocks[0].ss2d.conv.register_forward_hook(lambda *_: None)
    torch.compile(model, backend=show)(image)
"""


def test_training_and_inference_on_a_gpu_convolve_in_one_pass() -> None:
    """Every block's convolution and SiLU are one operator, in one graph; but where somebody looks."""
    blocks = sum(VARIANTS["vmamba_pico"].config.depths)
    whole = f"one graph {blocks} {blocks}\n"
    assert run(FUSED) == f"{whole}True\n{whole}False\none graph {blocks} {blocks - 1}\n"


# On the CPU, where the operator stays in the graph: the caches' keys are made in the same way.
CACHES = """
from contextlib import nullcontext
import torch
from torch._inductor.utils import fresh_cache
from vmamba.ops import ss2d_scan, use_backend
from vmamba.ops.backends.triton.sources import marker

image = [torch.rand(s) for s in ((1, 3, 4, 8), (1, 3, 4, 4, 6), (4, 8, 4), (4, 8, 1), (4, 8), (4, 8))]

def compile(label, backend=nullcontext()):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with backend:
        torch.compile(ss2d_scan)(*image)
    found = torch._dynamo.utils.counters["aot_autograd"]
    print(label, found["autograd_cache_hit"])

with fresh_cache():
    compile("first")
    compile("again")
    compile("another backend", use_backend("chunked"))
    marker.fn.__globals__["SOURCES"] = "edited"
    compile("edited")
    compile("again")
"""


def test_an_edited_kernel_or_another_backend_never_comes_from_a_cache() -> None:
    assert run(CACHES) == "first 0\nagain 1\nanother backend 0\nedited 0\nagain 1\n"
