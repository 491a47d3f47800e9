"""The loss of LeJEPA (Balestriero and LeCun, "LeJEPA: Provable and Scalable Self-Supervised Learning Without the
Heuristics", arXiv:2511.08544): views of an image agree, and embeddings are spread as an isotropic Gaussian.

It computes in float32 whatever the embeddings are, and over the global batch: the characteristic function is a mean
over samples, which processes sum in a way that gradients pass through.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.nn.functional import all_reduce

#: Frequencies at which the characteristic functions are compared, from 0 to `MAX_FREQUENCY`.
FREQUENCIES, MAX_FREQUENCY = 17, 3.0


def random_directions(dim: int, count: int, device: torch.device, *, distributed: bool = False) -> Tensor:
    """Unit vectors (dim, count), float32, drawn by the CPU's generator so that every device has the same.

    Args:
        dim: Width of the embeddings.
        count: Number of directions.
        device: Where they are needed.
        distributed: Take those of the first process in all of them.
    """
    directions = torch.randn(dim, count)
    directions = (directions / directions.norm(dim=0)).to(device)
    if distributed:
        dist.broadcast(directions, src=0)
    return directions


def sigreg(embeddings: Tensor, directions: Tensor, *, distributed: bool = False) -> Tensor:
    """Sketched isotropic Gaussian regularisation: the Epps–Pulley statistic, averaged over views and directions.

    For each direction it compares the empirical characteristic function of the projected embeddings with exp(-t²/2),
    squared, weighted by exp(-t²/2) and integrated over t by the trapezoidal rule, times the number of samples.

    Args:
        embeddings: (V, N, D); each of the V views is a sample of N.
        directions: Unit vectors (D, M).
        distributed: Take the samples of all processes together; each must have as many.
    """
    frequencies = torch.linspace(0, MAX_FREQUENCY, FREQUENCIES, device=embeddings.device)
    gaussian = torch.exp(-frequencies.square() / 2)
    angles = (embeddings.float() @ directions).unsqueeze(-1) * frequencies  # (V, N, M, T)
    means = torch.stack([angles.cos().mean(1), angles.sin().mean(1)])
    samples = embeddings.shape[1]
    if distributed:
        means = all_reduce(means) / dist.get_world_size()
        samples *= dist.get_world_size()
    real, imaginary = means
    error = (real - gaussian).square() + imaginary.square()
    # The integrand is even in t: twice the integral over t ≥ 0 is that over all t.
    return samples * 2 * torch.trapezoid(error * gaussian, frequencies).mean()


def invariance(embeddings: Tensor, global_views: int) -> Tensor:
    """Mean squared distance of every view from the mean of the global ones.

    Args:
        embeddings: (V, N, D), the global views first.
        global_views: How many these are.
    """
    embeddings = embeddings.float()
    return (embeddings - embeddings[:global_views].mean(0)).square().mean()
