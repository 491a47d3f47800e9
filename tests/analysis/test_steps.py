"""The way from the vanilla block to ours."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from vmamba import VMambaConfig
from vmamba.analysis import Step, acceleration_steps, measure_steps
from vmamba.model.variants import VARIANTS


def test_steps_lead_from_vanilla_to_ours_one_change_at_a_time() -> None:
    steps = acceleration_steps()
    assert steps[0].config == VARIANTS["vanilla_vmamba_tiny"].config
    assert steps[5].config == VARIANTS["vmamba_tiny_s2l5"].config
    assert steps[-1].config == steps[-2].config == VARIANTS["vmamba_tiny_s1l8"].config
    assert (steps[0].backend, steps[1].backend) == ("reference", "chunked")
    changes = [
        {f.name for f in dataclasses.fields(VMambaConfig) if getattr(a.config, f.name) != getattr(b.config, f.name)}
        for a, b in itertools.pairwise(steps)
    ]
    assert changes == [
        set(),
        {"d_state"},
        {"mlp_ratio", "depths"},
        {"gate", "ssm_conv_bias"},
        {"stem", "downsample"},
        {"ssm_ratio", "depths"},
        set(),
    ]


def test_measured_in_turns() -> None:
    config = VMambaConfig(num_classes=2, dims=(8, 16), depths=(1, 1))
    steps = [Step(name, config, name) for name in ("reference", "chunked")]
    results = measure_steps(steps, (32, 64), batch=2, rounds=2, training=True)
    assert [result.step for result in results] == steps
    assert results[0].cost == results[1].cost
    assert results[0].images_per_second == 2 / results[0].timing.median
    with pytest.raises(ValueError, match="rounds must be at least 2"):
        measure_steps(steps, rounds=1)
