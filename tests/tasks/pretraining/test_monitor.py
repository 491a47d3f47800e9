"""Rank and neighbours, against closed forms and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from vmamba.tasks.pretraining.monitor import (
    NEIGHBOURS,
    TEMPERATURE,
    FeatureMonitor,
    effective_rank,
    nearest_neighbour_accuracy,
)


def test_effective_rank() -> None:
    """Points on k orthogonal axes at the same distance have rank k; shifting and scaling change nothing."""
    for k in (1, 3, 8):
        axes = torch.eye(8)[:k]
        points = torch.cat([axes, -axes])
        assert effective_rank(points) == pytest.approx(k)
        assert effective_rank(5 * points + 100) == pytest.approx(k, rel=1e-4)
    assert effective_rank(torch.ones(10, 4)) == 1
    values = torch.tensor([3.0, 1.0])  # entropy of (3/4, 1/4)
    expected = float(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))
    assert effective_rank(torch.cat([torch.diag(values), -torch.diag(values)])) == pytest.approx(expected)


def test_neighbours_vote_as_in_scikit_learn() -> None:
    """Leaving the image itself out; more rows than one block has."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 4, 1100)
    features = generator.normal(size=(1100, 6)) + 0.6 * np.eye(4, 6)[labels]
    search = NearestNeighbors(n_neighbors=NEIGHBOURS, metric="cosine", algorithm="brute").fit(features)
    distances, neighbours = search.kneighbors()
    votes = np.exp((1 - distances) / TEMPERATURE)[..., None] * np.eye(4)[labels[neighbours]]
    predicted = votes.sum(1).argmax(1)
    ours = nearest_neighbour_accuracy(torch.tensor(features), torch.tensor(labels))
    assert 0.3 < ours < 0.9
    assert ours == pytest.approx(float((predicted == labels).mean()), abs=0.002)


def test_images_without_a_class_do_not_count() -> None:
    monitor = FeatureMonitor()
    monitor.add(torch.eye(4)[[0, 0, 1, 1]], torch.tensor([0, 0, 1, 1]))
    monitor.add(torch.eye(4)[[2, 3]], torch.tensor([-1, -1]))
    assert monitor.results() == {"effective_rank": pytest.approx(3.0, abs=0.2), "knn": 100.0}
    unknown = FeatureMonitor()
    unknown.add(torch.eye(4), torch.full((4,), -1))
    assert unknown.results().keys() == {"effective_rank"}


def test_mixed_precision_changes_nothing() -> None:
    """Validation runs under autocast; who is near is decided in float32."""
    monitor = FeatureMonitor()
    generator = torch.Generator().manual_seed(0)
    monitor.add(torch.randn(200, 8, generator=generator), torch.arange(200) % 4)
    exact = monitor.results()
    with torch.autocast("cpu", torch.bfloat16):
        assert monitor.results() == exact
