"""Orders visit every token once, in the way that they promise."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vmamba.ops import orders

SIZES = [(1, 1), (1, 5), (4, 1), (3, 5), (8, 8), (7, 4), (6, 13)]
sizes = pytest.mark.parametrize(("height", "width"), SIZES)


def padded(function: Callable[..., Tensor], size: int) -> Callable[[int, int], Tensor]:
    return lambda height, width: function(height, width, size)


SINGLE: dict[str, Callable[[int, int], Tensor]] = {
    name: getattr(orders, name)
    for name in ("rows", "columns", "snake", "diagonals", "antidiagonals", "zigzag", "z_order", "hilbert")
} | {f"windows {size}": padded(orders.windows, size) for size in (1, 2, 3, 7)}


def times(order: Tensor, height: int, width: int) -> Tensor:
    """When each token of the grid is visited."""
    visit = torch.full((height * width,), -1)
    tokens = order[order >= 0]
    visit[tokens] = torch.arange(len(tokens))
    return visit.view(height, width)


def steps(order: Tensor, width: int) -> Tensor:
    """How far each token is from the one before, in rows plus columns."""
    row, column = order // width, order % width
    return row.diff().abs() + column.diff().abs()


@sizes
@pytest.mark.parametrize("name", SINGLE)
def test_every_token_once(name: str, height: int, width: int) -> None:
    order = SINGLE[name](height, width)
    assert order.dtype == torch.int64
    tokens = order[order >= 0]
    assert torch.equal(tokens.sort().values, torch.arange(height * width))
    if not name.startswith("windows"):
        assert len(order) == height * width


@sizes
@pytest.mark.parametrize(
    ("function", "count"), [(orders.cross, 4), (orders.eight_directions, 8), (padded(orders.windows, 2), 1)]
)
def test_sets_of_routes(function: Callable[[int, int], Tensor], count: int, height: int, width: int) -> None:
    order = function(height, width).reshape(count, -1)
    for route in order:
        assert torch.equal(route[route >= 0].sort().values, torch.arange(height * width))


@sizes
@pytest.mark.parametrize("step", [1, 2, 3])
def test_strided_subsets_share_the_tokens_out(height: int, width: int, step: int) -> None:
    order = orders.strided(height, width, step)
    assert order.shape == (step**2, -(-height // step) * -(-width // step))
    assert torch.equal(order[order >= 0].sort().values, torch.arange(height * width))
    for k, route in enumerate(order):
        tokens = route[route >= 0]
        assert (tokens // width % step == k % step).all()
        assert (tokens % width % step == k // step).all()


def test_examples_by_hand() -> None:
    def drawn(order: Tensor, height: int, width: int) -> list[list[int]]:
        return times(order, height, width).tolist()

    assert drawn(orders.rows(2, 3), 2, 3) == [[0, 1, 2], [3, 4, 5]]
    assert drawn(orders.columns(2, 3), 2, 3) == [[0, 2, 4], [1, 3, 5]]
    assert drawn(orders.snake(3, 3), 3, 3) == [[0, 1, 2], [5, 4, 3], [6, 7, 8]]
    assert drawn(orders.diagonals(2, 3), 2, 3) == [[1, 3, 5], [0, 2, 4]]
    assert drawn(orders.diagonals(2, 3, wrapped=True), 2, 3) == [[0, 2, 4], [5, 1, 3]]
    assert drawn(orders.antidiagonals(2, 3), 2, 3) == [[0, 1, 3], [2, 4, 5]]
    assert drawn(orders.antidiagonals(2, 3, wrapped=True), 2, 3) == [[0, 2, 4], [3, 5, 1]]
    assert drawn(orders.zigzag(3, 3), 3, 3) == [[0, 1, 5], [2, 4, 6], [3, 7, 8]]
    assert drawn(orders.z_order(4, 2), 4, 2) == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert drawn(orders.z_order(2, 4), 2, 4) == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert drawn(orders.hilbert(2, 2), 2, 2) == [[0, 3], [1, 2]]
    assert orders.windows(2, 3, 2).tolist() == [0, 1, 3, 4, 2, -1, 5, -1]
    assert orders.windows(2, 3, 2, by_columns=True).tolist() == [0, 3, 1, 4, 2, 5, -1, -1]
    assert orders.strided(2, 3, 2).tolist() == [[0, 2], [3, 5], [1, -1], [4, -1]]


@pytest.mark.parametrize("size", [2, 4, 8, 16, 32])
def test_hilbert_and_snake_go_from_neighbour_to_neighbour(size: int) -> None:
    assert (steps(orders.hilbert(size, size), size) == 1).all()
    assert (steps(orders.snake(size, size + 1), size + 1) == 1).all()


@pytest.mark.parametrize("name", ["z_order", "hilbert"])
def test_curves_finish_a_quadrant_before_the_next(name: str) -> None:
    visit = times(getattr(orders, name)(8, 8), 8, 8)
    for size in (2, 4):
        for block in visit.unfold(0, size, size).unfold(1, size, size).reshape(-1, size * size):
            assert block.max() - block.min() == size * size - 1


def test_windows_of_a_grid_that_they_divide_are_blocks() -> None:
    visit = times(orders.windows(6, 4, 2), 6, 4)
    for k, block in enumerate(visit.unfold(0, 2, 2).unfold(1, 2, 2).reshape(-1, 4)):
        assert block.tolist() == [4 * k, 4 * k + 1, 4 * k + 2, 4 * k + 3]


def test_on_another_device() -> None:
    for function in (*SINGLE.values(), orders.cross, orders.eight_directions, padded(orders.strided, 2)):
        with torch.device("meta"):
            assert function(3, 5).device.type == "meta"
    assert orders.hilbert(3, 5, "meta").device.type == "meta"
    assert orders.strided(3, 5, 2, "meta").device.type == "meta"
