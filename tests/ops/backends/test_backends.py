"""The table of backends: who answers, why, and what compiled code holds."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from support.operands import ss2d_operands
from vmamba import ops
from vmamba.errors import OptionError
from vmamba.ops import BACKENDS, backends, select, ss2d_scan, use_backend
from vmamba.ops.backends import Backend, Choice, is_plain, requested, unavailable

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", BACKENDS)
def test_use_backend_makes_it_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if (problem := unavailable(name)) is not None:
        pytest.skip(problem)
    asked = []
    load = Choice.load
    u = torch.randn(1, 2, 3, requires_grad=True)
    with use_backend(name):
        monkeypatch.setattr(Choice, "load", lambda choice: asked.append(choice.name) or load(choice))
        assert (select(CPU).name, requested(), is_plain()) == (name, name, name in ("chunked", "reference"))
        y = ops.selective_scan(u, u.sigmoid(), -torch.ones(2, 1), torch.ones(1, 1, 3), torch.ones(1, 1, 3))
    assert (requested(), is_plain()) == (None, False)
    y.sum().backward()
    assert asked == [name, name]  # forward, and backward although the block has ended


def test_automatic_choice_gives_a_reason_and_nesting_restores() -> None:
    automatic = select(CPU)
    assert automatic.name in BACKENDS
    assert automatic.reason
    with use_backend("reference"):
        with use_backend("chunked"):
            assert select(CPU).name == "chunked"
        assert select(CPU).name == "reference"
    assert select(CPU) == automatic


def test_restored_after_an_error() -> None:
    before = select(CPU)
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert select(CPU) == before


def test_unknown_backend_names_the_choices() -> None:
    message = r"^unknown backend 'cuda'; choose one of .*chunked.*reference"
    with pytest.raises(OptionError, match=message), use_backend("cuda"):
        pass
    operands = ss2d_operands(1, 2, 2, 2, 1, 1, "cross")
    with pytest.raises(ValueError, match=message):
        torch.ops.vmamba.ss2d_scan(*operands, "cross", "cuda")


def test_every_row_has_a_module_and_every_module_a_row() -> None:
    folder = Path(backends.__file__).parent
    modules = {path.stem for path in folder.iterdir() if path.is_dir() or path.suffix == ".py"}
    assert {name for name in modules if not name.startswith("__")} == set(BACKENDS)


def test_the_table_is_asked_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend is a module and a row: nothing else changes."""
    mine = ModuleType("mine")
    mine.describe = lambda: "my kernels"  # type: ignore[attr-defined]
    mine.ss2d_scan = lambda operands: operands.x + 1  # type: ignore[attr-defined]
    found = backends._import
    monkeypatch.setattr(backends, "_import", lambda name: (mine, None) if name == "mine" else found(name))
    monkeypatch.setattr(backends, "_TABLE", (Backend("mine", "mine", ("cpu",)), *BACKENDS.values()))
    monkeypatch.setattr(backends, "_automatic", {})
    assert select(CPU) == Choice("mine", "my kernels")
    operands = ss2d_operands(1, 2, 2, 2, 1, 1, "cross")
    torch.testing.assert_close(ss2d_scan(*operands), operands[0] + 1)
    monkeypatch.setattr(backends, "_automatic", {})
    monkeypatch.setattr(backends, "_import", lambda name: (None, "no luck") if name == "mine" else found(name))
    assert select(CPU).name != "mine"
    assert select(CPU).reason.endswith("mine is unavailable: no luck")
    assert select(torch.device("meta")).name == "chunked"


def test_modules_are_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    found = backends._import
    monkeypatch.setattr(backends, "_import", lambda name: asked.append(name) or found(name))
    monkeypatch.setattr(backends, "_automatic", {})
    first = select(CPU)
    count = len(asked)
    assert select(CPU) is first
    assert len(asked) == count


def test_compiled_code_follows_use_backend() -> None:
    """The backend asked for stands in the graph, which caches of compiled code are keyed by."""
    torch.compiler.reset()
    operands = ss2d_operands(1, 3, 4, 2, 1, 1, "cross", torch.float32)
    graphs: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph.code)
        return graph

    compiled = torch.compile(ss2d_scan, backend=backend, fullgraph=True)
    for name in (None, "chunked", "reference", None, "chunked"):
        if name is None:
            y = compiled(*operands)
        else:
            with use_backend(name):
                y = compiled(*operands)
        torch.testing.assert_close(y, ss2d_scan(*operands))
    assert ["'chunked'" in code for code in graphs] == [False, True, False]
    assert ["'reference'" in code for code in graphs] == [False, False, True]


def test_exported_programs_choose_where_they_run() -> None:
    class Scan(torch.nn.Module):
        def forward(self, *operands: Tensor) -> Tensor:
            return ss2d_scan(*operands)

    operands = tuple(ss2d_operands(1, 3, 4, 2, 1, 1, "cross", torch.float32))
    with use_backend("chunked"):
        program = torch.export.export(Scan(), operands)
    assert "chunked" not in program.graph_module.code


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_choice_is_a_constant_when_compiled(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that asks which backend answers compiles into one graph, before the modules were ever imported."""
    torch.compiler.reset()
    monkeypatch.setattr(backends, "_automatic", {})
    backends._import.cache_clear()

    def run(x: Tensor) -> Tensor:
        return x + 1 if select(torch.device(device)).name == "chunked" else x + 2

    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(run, backend=counter, fullgraph=True)
    x = torch.zeros(3)
    automatic = run(x)
    assert torch.equal(compiled(x), automatic)
    with use_backend("chunked"):
        assert torch.equal(compiled(x), x + 1)
    assert torch.equal(compiled(x), automatic)
    assert counter.frame_count == 2
