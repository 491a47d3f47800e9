"""What is in a batch depends on (seed, epoch, number) alone."""

from __future__ import annotations

import gc
import multiprocessing
import random
import types

import numpy as np
import pytest
import torch

from vmamba.data import loader as loading
from vmamba.data.loader import IndexedLoader
from vmamba.data.seeding import seed_all, seeded
from vmamba.errors import ImageError

Drawn = tuple[int, float, float, float]


class Draws:
    """Sample i is i and a number from each generator; multiples of 7 cannot be read if told so."""

    def __init__(self, count: int, broken: bool = False) -> None:
        self.count, self.broken = count, broken

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int, /) -> Drawn:
        if self.broken and index % 7 == 0:
            raise ImageError(f"image {index}")
        return index, float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002


def loader(count: int = 50, broken: bool = False, **options: object) -> IndexedLoader[list[Drawn]]:
    settings: dict[str, object] = {"batch_size": 4, "training": True, "seed": 5, **options}
    return IndexedLoader(Draws(count, broken), list, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_and_start_change_nothing(workers: int) -> None:
    whole = list(loader().batches(2))
    assert len(whole) == len(loader()) == 12
    one = loader(workers=workers)
    assert list(one.batches(2)) == whole
    assert list(one.batches(2, 5)) == whole[5:]
    assert list(one.batches(3)) != whole


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_each_global_batch(world_size: int) -> None:
    """Together, with the same draws, they hold what one process with larger batches holds."""
    parts = [list(loader(rank=rank, world_size=world_size).batches(1)) for rank in range(world_size)]
    together = [[sample for part in batches for sample in part] for batches in zip(*parts, strict=True)]
    assert together == list(loader(batch_size=4 * world_size).batches(1))
    seen = [index for batch in together for index, *_ in batch]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(("count", "world_size"), [(50, 3), (1, 2), (8, 2)])
def test_evaluation_sees_every_image_once(count: int, world_size: int) -> None:
    loaders = [loader(count, training=False, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [list(one.batches(0)) for one in loaders]
    assert [len(some) for some in batches] == [len(one) for one in loaders]
    assert sorted(i for some in batches for batch in some for i, *_ in batch) == list(range(count))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images(workers: int) -> None:
    """Training replaces them by the next one, evaluation leaves them out; both list them once."""
    training = loader(28, broken=True, workers=workers)
    for _ in range(2):
        batches = list(training.batches(0))
        assert [len(batch) for batch in batches] == [4] * 7
        assert all(i % 7 for batch in batches for i, *_ in batch)
    assert sorted(training.skipped) == ["image 0", "image 14", "image 21", "image 7"]
    evaluating = loader(28, broken=True, workers=workers, training=False)
    assert sum(len(batch) for batch in evaluating.batches(0)) == 24
    with pytest.raises(ImageError, match="image "):
        list(loader(28, broken=True, strict=True).batches(0))


@pytest.mark.parametrize("taken", [1, 12])
def test_processes_end_with_the_loader(taken: int) -> None:
    """At once: collected later, while something is imported, each process is waited for in vain for seconds."""
    gc.disable()
    try:
        one = loader(workers=2)
        batches = one.batches(0)
        for _ in range(taken):
            next(batches)
        assert len(multiprocessing.active_children()) == 2
        del one, batches
        assert not multiprocessing.active_children()
    finally:
        gc.enable()


def test_a_batch_of_unreadable_images_is_not_yielded() -> None:
    evaluating = loader(8, broken=True, batch_size=1, training=False)
    assert [batch[0][0] for batch in evaluating.batches(0)] == [1, 2, 3, 4, 5, 6]
    assert len(evaluating.skipped) == 2


def test_too_few_images() -> None:
    with pytest.raises(ValueError, match="3 training images are fewer than one batch of 4"):
        loader(3)
    with pytest.raises(ValueError, match="no images to evaluate"):
        loader(0, training=False)


def test_seeding() -> None:
    def draw() -> Drawn:
        return 0, float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002

    seed_all(1, 2)
    first = draw()
    with seeded(3):
        inside = draw()
    second = draw()
    seed_all(1, 2)
    assert (draw(), draw()) == (first, second)
    with seeded(3):
        assert draw() == inside
    seed_all(2, 1)
    assert draw() != first


@pytest.mark.parametrize("alive", [True, False])
def test_a_killed_training_process_is_no_error_of_its_loaders(
    alive: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The thread of multiprocessing that hands tensors over would print a traceback; it may notice the end first."""
    lives = [True]
    parent = types.SimpleNamespace(is_alive=lambda: lives[-1], join=lambda timeout: lives.append(alive))
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    loading._silent_without_training(ConnectionResetError, ConnectionResetError("gone"), None)
    assert ("ConnectionResetError: gone" in capsys.readouterr().err) == alive
    loading._silent_without_training(KeyError, KeyError("bug"), None)
    assert "KeyError: 'bug'" in capsys.readouterr().err
