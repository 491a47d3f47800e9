"""A classifier fitted to frozen features, to begin fine-tuning with.

From a random classifier, the first steps bend features towards logits that mean nothing yet (Kumar et al., "Fine-Tuning
can Distort Pretrained Features and Underperform Out-of-Distribution", arXiv:2202.10054).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Iterations of L-BFGS.
ITERATIONS = 200


def fit_classifier(model: nn.Module, batches: Iterable[Any]) -> None:
    """Replace the weights of the classifier by those of a linear probe.

    Args:
        model: A model of timm's contract with a linear classifier; its mode (training or not) is left as it was.
        batches: Of `vmamba.tasks.classification.task.ImageBatch`: all images that it may learn from.
    """
    net, training = cast(Any, model), model.training
    features, labels = list[Tensor](), list[Tensor]()
    model.eval()
    with torch.no_grad():
        for batch in batches:
            features.append(net.forward_head(net.forward_features(batch.images), pre_logits=True))
            labels.append(batch.labels)
    model.train(training)
    x, y = torch.cat(features).double(), torch.cat(labels)
    mean, std = x.mean(0), x.std(0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    weight, bias = logistic_regression((x - mean) / std, y, net.num_classes)
    weight = weight / std
    classifier = cast(nn.Linear, net.get_classifier())
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias - weight @ mean)


def logistic_regression(x: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Weights (K, C) and biases (K,) of K classes from features (N, C) and labels (N,).

    They minimise the cross entropy summed over the samples, plus half the sum of the squared weights; as scikit-learn's
    `LogisticRegression` of strength 1 does.
    """
    weight = torch.zeros(classes, x.shape[1], dtype=x.dtype, requires_grad=True)
    bias = torch.zeros(classes, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(x, weight, bias), y, reduction="sum") + weight.square().sum() / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(objective)
    return weight.detach(), bias.detach()
