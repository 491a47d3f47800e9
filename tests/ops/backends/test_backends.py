import pytest
import torch

from vmamba import ops
from vmamba.ops import BACKENDS, select, use_backend
from vmamba.ops.backends import Choice, unavailable


@pytest.mark.parametrize("name", BACKENDS)
def test_use_backend_makes_it_answer(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert unavailable(name) is None  # looked up once, before the count begins
    asked = []
    load = Choice.load
    monkeypatch.setattr(Choice, "load", lambda choice: asked.append(choice.name) or load(choice))
    u = torch.randn(1, 2, 3, requires_grad=True)
    with use_backend(name):
        assert select(u.device) == Choice(name, "asked for with use_backend")
        y = ops.selective_scan(u, u.sigmoid(), -torch.ones(2, 1), torch.ones(1, 1, 3), torch.ones(1, 1, 3))
        y.sum().backward()
    assert asked == [name, name]  # forward and backward


def test_automatic_choice_gives_a_reason_and_nesting_restores() -> None:
    automatic = select(torch.device("cpu"))
    assert automatic.name in BACKENDS
    assert automatic.reason
    with use_backend("reference"):
        with use_backend("chunked"):
            assert select(torch.device("cpu")).name == "chunked"
        assert select(torch.device("cpu")).name == "reference"
    assert select(torch.device("cpu")) == automatic


def test_restored_after_an_error() -> None:
    before = select(torch.device("cpu"))
    with pytest.raises(KeyError), use_backend("reference"):
        raise KeyError
    assert select(torch.device("cpu")) == before


def test_unknown_backend_names_the_choices() -> None:
    message = r"unknown backend 'cuda'; choose one of .*chunked.*reference"
    with pytest.raises(ValueError, match=message), use_backend("cuda"):
        pass
