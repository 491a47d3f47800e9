"""The paper's way from the vanilla block to the fast one, step by step: parameters, multiply-adds, images per second.

Source: Liu et al., "VMamba", NeurIPS 2024, section 4.3 (accelerating VMamba).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vmamba.analysis.cost import LayerCost, cost
from vmamba.analysis.throughput import Timing, alternate, check, step
from vmamba.errors import OptionError
from vmamba.model.backbone import VMamba
from vmamba.model.config import VMambaConfig
from vmamba.model.variants import VARIANTS
from vmamba.ops import select, use_backend


@dataclass(frozen=True)
class Step:
    """One model on the way.

    Attributes:
        name: Of what is new in it.
        config: Its architecture.
        backend: Of the scan.
    """

    name: str
    config: VMambaConfig
    backend: str


@dataclass(frozen=True)
class StepResult:
    """A step, its cost and how fast it ran."""

    step: Step
    cost: LayerCost
    batch: int
    timing: Timing

    @property
    def images_per_second(self) -> float:
        """By the median."""
        return self.batch / self.timing.median


def acceleration_steps(device: torch.device | str = "cpu") -> list[Step]:
    """From `vanilla_vmamba_tiny` with the scan as a loop to `vmamba_tiny_s1l8` with the fastest scan for `device`.

    The depth changes with the block, as in the paper, to keep the cost near 5 G multiply-adds.
    """
    vanilla, ours = VARIANTS["vanilla_vmamba_tiny"].config, VARIANTS["vmamba_tiny_s1l8"].config
    few_states = dataclasses.replace(vanilla, d_state=1)
    mlp = dataclasses.replace(few_states, mlp_ratio=4.0, depths=(2, 2, 5, 2))
    ungated = dataclasses.replace(mlp, gate=False, ssm_conv_bias=False)
    overlapping = dataclasses.replace(ungated, stem="overlapping", downsample="conv3x3")
    return [
        Step("vanilla block, scan in a loop with einsum", vanilla, "reference"),
        Step("no einsum, no loop over tokens", vanilla, "chunked"),
        Step("one state (N = 1)", few_states, "chunked"),
        Step("MLP, 5 blocks in stage 3", mlp, "chunked"),
        Step("no gate", ungated, "chunked"),
        Step("overlapping stem and downsampling", overlapping, "chunked"),
        Step("inner channels × 1, 8 blocks", ours, "chunked"),
        Step("fused scan", ours, select(torch.device(device)).name),
    ]


def measure_steps(
    steps: list[Step],
    image_size: tuple[int, int] = (224, 224),
    batch: int = 1,
    *,
    training: bool = False,
    rounds: int = 5,
    device: torch.device | str = "cpu",
) -> list[StepResult]:
    """Count and time the steps, taking turns.

    Args:
        steps: See `acceleration_steps`.
        image_size: (H, W) in pixels.
        batch: Images per step.
        training: Time training steps instead of inference.
        rounds: Timed calls of each, at least 2.
        device: Of the models.

    Raises:
        OptionError: For a wrong output, or fewer than 2 rounds.
    """
    if rounds < 2:
        raise OptionError(f"rounds must be at least 2 for a median with quartiles, got {rounds}")
    cases: dict[str, Callable[[], object]] = {}
    costs = {}
    for one in steps:
        costs[one.name] = cost(VMamba(one.config, device="meta"), image_size)[0]
        model = VMamba(one.config, device=device).eval()
        images = torch.randn(batch, 3, *image_size, device=device)
        with use_backend(one.backend):
            check(one.name, model, images)
        cases[one.name] = _with_backend(one.backend, model, images, training)
    timings = alternate(cases, rounds, warmup=1, device=device)
    return [StepResult(one, costs[one.name], batch, timings[one.name]) for one in steps]


def _with_backend(backend: str, model: VMamba, images: Tensor, training: bool) -> Callable[[], None]:
    run = step(model, images, training)

    def with_backend() -> None:
        with use_backend(backend):
            run()

    return with_backend
