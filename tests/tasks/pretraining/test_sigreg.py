"""The loss against lightly's, against its definition in float64, and what it tells apart."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import LeJEPALoss
from torch import Tensor

from vmamba.tasks.pretraining.sigreg import invariance, random_directions, sigreg

CPU = torch.device("cpu")


@pytest.mark.parametrize(("views", "global_views", "samples", "dim"), [(2, 1, 5, 3), (6, 2, 32, 16), (4, 3, 1, 8)])
def test_equals_lightly(views: int, global_views: int, samples: int, dim: int) -> None:
    """Value and gradient, with the same directions."""
    generator = torch.Generator().manual_seed(views)
    embeddings = 2 * torch.randn(views, samples, dim, generator=generator) + 0.3
    ours, theirs = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
    torch.manual_seed(1)
    directions = random_directions(dim, 1024, CPU)
    loss = 0.05 * sigreg(ours, directions) + 0.95 * invariance(ours, global_views)
    torch.manual_seed(1)
    expected = LeJEPALoss(0.05)(global_proj=theirs[:global_views], local_proj=theirs[global_views:])
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_definition() -> None:
    """One direction, summed by hand in float64."""
    points = torch.tensor([[-0.4], [0.9], [2.2]], dtype=torch.float64)
    total = 0.0
    for i in range(-16, 17):
        t = 3.0 * i / 16
        mean = sum(complex(math.cos(t * float(x)), math.sin(t * float(x))) for x in points) / 3
        edge = 0.5 if abs(i) == 16 else 1.0
        total += edge * (3 / 16) * abs(mean - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2)
    assert float(sigreg(points[None], torch.ones(1, 1))) == pytest.approx(3 * total, rel=1e-5)


def test_gaussian_is_preferred() -> None:
    """A normal sample has less than one that is collapsed, wider, shifted or flat in one direction."""
    torch.manual_seed(0)
    directions, normal = random_directions(8, 256, CPU), torch.randn(1, 512, 8)
    flat = normal * torch.tensor([0.01] + [1.0] * 7)
    others = (torch.zeros(1, 512, 8), 2 * normal, normal + 0.5, flat)
    assert all(sigreg(other, directions) > 1.5 * sigreg(normal, directions) for other in others)


def test_half_precision_is_computed_in_float32() -> None:
    torch.manual_seed(0)
    directions, embeddings = random_directions(8, 64, CPU), torch.randn(2, 16, 8).bfloat16()
    assert torch.equal(sigreg(embeddings, directions), sigreg(embeddings.float(), directions))
    assert invariance(embeddings, 1).dtype == torch.float32


def test_directions() -> None:
    def drawn(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return random_directions(5, 100, CPU)

    assert torch.allclose(drawn(0).norm(dim=0), torch.ones(100))
    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
