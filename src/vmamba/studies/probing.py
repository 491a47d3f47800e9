"""Probes: how much simple classifiers get out of frozen features, with few labels and with many."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmamba.errors import DataError, MissingPackageError
from vmamba.studies.features import Features
from vmamba.tables import Row

#: Neighbours that vote, where there are as many labels a class.
NEIGHBOURS = 5


@dataclass(frozen=True)
class Score:
    """Accuracy of a probe on validation images, in per cent.

    Attributes:
        features: Kind of the features.
        probe: ``"knn"`` or ``"linear"``.
        labels_per_class: Labels that it learnt from; None for all.
        seed: Of the choice of these.
        accuracy: Per cent.
    """

    features: str
    probe: str
    labels_per_class: int | None
    seed: int
    accuracy: float


def probe(train: Features, val: Features, labels_per_class: Sequence[int | None], seeds: int = 3) -> Iterator[Score]:
    """Scores of both probes for every kind of features; all kinds learn from the same images.

    Args:
        train: Where labels are taken from.
        val: What is measured on.
        labels_per_class: How many; None for all.
        seeds: Choices of the images, and so repetitions; all labels can be chosen in one way alone.

    Raises:
        MissingPackageError: If scikit-learn is not installed.
        DataError: If there is nothing to tell apart.
    """
    if len(np.unique(train.labels)) < 2:
        raise DataError("there is nothing to tell apart: all training images are of one class")
    probes = _probes()
    for count in labels_per_class:
        for seed in range(seeds if count is not None else 1):
            chosen = choose(train.labels, count, seed)
            for kind in train.values:
                x, y = train.values[kind][chosen], train.labels[chosen]
                for name, make in probes.items():
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # that it has not converged in as many steps as allowed
                        fitted = make(min(NEIGHBOURS, count or NEIGHBOURS)).fit(x, y)
                    yield Score(kind, name, count, seed, 100 * float(fitted.score(val.values[kind], val.labels)))


def choose(labels: NDArray[np.int64], count: int | None, seed: int) -> NDArray[np.int64]:
    """Indices of `count` images of every class, or of all there are where they are fewer; None for all."""
    if count is None:
        return np.arange(len(labels))
    generator = np.random.default_rng(seed)
    members = (np.flatnonzero(labels == label) for label in np.unique(labels))
    return np.sort(np.concatenate([generator.permutation(each)[:count] for each in members]))


def summary(scores: Sequence[Score]) -> list[Row]:
    """One row for each number of labels, probe and kind: mean, spread (smallest, largest) and number of seeds."""
    groups: dict[tuple[int | None, str, str], list[float]] = {}
    for score in scores:
        groups.setdefault((score.labels_per_class, score.probe, score.features), []).append(score.accuracy)
    return [
        {
            "labels_per_class": "all" if count is None else count,
            "probe": name,
            "features": kind,
            "accuracy": round(statistics.mean(values), 2),
            "lowest": round(min(values), 2),
            "highest": round(max(values), 2),
            "seeds": len(values),
        }
        for (count, name, kind), values in groups.items()
    ]


def _probes() -> dict[str, Callable[[int], Any]]:
    """Name → classifier for a number of neighbours."""
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.neighbors import KNeighborsClassifier
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise MissingPackageError("scikit-learn", "train") from None

    def linear(_: int) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=500))

    def knn(neighbours: int) -> Any:
        return KNeighborsClassifier(neighbours, metric="cosine", weights="distance")

    return {"knn": knn, "linear": linear}
