import pytest
import torch

from vmamba.ops.routes import PATTERNS, Route, routes


def test_orders_of_a_2_by_3_grid() -> None:
    # 0 1 2
    # 3 4 5
    assert Route().order(2, 3).tolist() == [0, 1, 2, 3, 4, 5]
    assert Route(columns=True).order(2, 3).tolist() == [0, 3, 1, 4, 2, 5]
    assert Route(backward=True).order(2, 3).tolist() == [5, 4, 3, 2, 1, 0]
    assert Route(columns=True, backward=True).order(2, 3).tolist() == [5, 2, 4, 1, 3, 0]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_route_visits_every_token_once(pattern: str) -> None:
    for route in routes(pattern):
        assert torch.equal(route.order(5, 3).sort().values, torch.arange(15))


def test_line_lengths() -> None:
    assert Route().line_length(2, 3) == 6
    assert Route(per_line=True).line_length(2, 3) == 3
    assert Route(columns=True, per_line=True).line_length(2, 3) == 2


def test_unknown_pattern_names_the_choices() -> None:
    with pytest.raises(ValueError, match="unknown scan pattern 'diagonal'; choose one of cross, unidirectional"):
        routes("diagonal")
