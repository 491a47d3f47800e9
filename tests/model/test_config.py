from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from vmamba import VMambaConfig
from vmamba.model.variants import VARIANTS


@pytest.mark.parametrize("name", VARIANTS)
def test_json_round_trip(name: str) -> None:
    config = dataclasses.replace(VARIANTS[name].config, pos_embed_size=64, dt_rank=3)
    assert VMambaConfig.from_json(config.to_json()) == config


def test_frozen_and_hashable() -> None:
    config = VMambaConfig(dims=[8, 16], depths=[1, 1])
    assert config.dims == (8, 16)
    assert hash(config) == hash(VMambaConfig(dims=(8, 16), depths=(1, 1)))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.d_state = 2


def test_ranks_and_inner_channels() -> None:
    config = VMambaConfig(ssm_ratio=1.5)
    assert (config.inner_dim(96), config.rank(96), config.rank(100)) == (144, 6, 7)
    assert VMambaConfig(dt_rank=5).rank(96) == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dims": (8, 16)}, "dims has 2 stages, depths 4"),
        ({"dims": ()}, "dims must be a sequence of positive integers, got ()"),
        ({"dims": 96}, "dims must be a sequence of positive integers, got 96"),
        ({"depths": (2, 2, 0, 2)}, "depths must be a sequence of positive integers"),
        ({"d_state": 0}, "d_state must be an integer ≥ 1, got 0"),
        ({"num_classes": -1}, "num_classes must be an integer ≥ 0"),
        ({"in_chans": True}, "in_chans must be an integer ≥ 1, got True"),
        ({"ssm_conv": 4}, "ssm_conv must be odd, or 0 for none, got 4"),
        ({"dt_rank": "full"}, "dt_rank must be a positive integer or 'auto', got 'full'"),
        ({"ssm_ratio": 0.001}, "ssm_ratio must leave inner channels in every stage"),
        ({"ssm_ratio": float("nan")}, "ssm_ratio must leave inner channels in every stage"),
        ({"mlp_ratio": -1.0}, "mlp_ratio must be ≥ 0, got -1.0"),
        ({"drop_path_rate": 1.0}, "drop_path_rate must be in [0, 1), got 1.0"),
        ({"scan": "diagonal"}, "scan must be one of cross, unidirectional, bidirectional, cascade, got 'diagonal'"),
        ({"out_norm": "batchnorm"}, "out_norm must be one of layernorm"),
        ({"gate": "yes"}, "gate must be true or false, got 'yes'"),
        ({"pos_embed_size": 2}, "pos_embed_size must be pixels ≥ 4 or None, got 2"),
        ({"dims": (1, 2, 4, 8)}, "the overlapping stem needs dims[0] ≥ 2"),
        ({"dims": (10**400,) * 4}, "dims must be at most 65536"),
        ({"ssm_ratio": 10**400}, "ssm_ratio must be at most 64"),
        ({"ssm_ratio": ("a",)}, "ssm_ratio must leave inner channels"),
    ],
)
def test_impossible_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^VMambaConfig: " + re.escape(message)) as caught:
        VMambaConfig(**values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object of options, got list"),
        ('{"d_stat": 1}', "unknown option 'd_stat'; do you mean 'd_state'?"),
    ],
)
def test_unreadable_json(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="^VMambaConfig: " + re.escape(message)):
        VMambaConfig.from_json(text)


AUTHOR_YAML = """
MODEL:
  TYPE: vssm
  NAME: vssm1_tiny_0230s
  DROP_PATH_RATE: 0.2
  VSSM:
    EMBED_DIM: 96
    DEPTHS: [ 2, 2, 8, 2 ]
    SSM_D_STATE: 1
    SSM_DT_RANK: "auto"
    SSM_RATIO: 1.0
    SSM_CONV: 3
    SSM_CONV_BIAS: false
    SSM_FORWARDTYPE: "v05_noz"
    MLP_RATIO: 4.0
    DOWNSAMPLE: "v3"
    PATCHEMBED: "v2"
    NORM_LAYER: "ln2d"
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_author_yaml(tmp_path: Path) -> None:
    expected = dataclasses.replace(VARIANTS["vmamba_tiny_s1l8"].config, drop_path_rate=0.2)
    base = write(tmp_path / "base.yaml", AUTHOR_YAML)
    assert VMambaConfig.from_author_yaml(base) == expected
    changed = "BASE: ['base.yaml']\nDATA:\n  IMG_SIZE: 192\nMODEL:\n  NUM_CLASSES: 10\n  VSSM:\n    POSEMBED: true\n"
    assert VMambaConfig.from_author_yaml(write(tmp_path / "b.yaml", changed)) == dataclasses.replace(
        expected, num_classes=10, pos_embed_size=192
    )


def test_author_yaml_of_the_first_version(tmp_path: Path) -> None:
    """Their first block ignores options of the later ones."""
    text = (
        AUTHOR_YAML.replace("v05_noz", "v0")
        .replace("SSM_RATIO: 1.0", "SSM_RATIO: 2.0")
        .replace("SSM_D_STATE: 1", "SSM_D_STATE: 16")
        .replace("MLP_RATIO: 4.0", "MLP_RATIO: 0.0")
        .replace('"v3"', '"v1"')
        .replace('PATCHEMBED: "v2"', 'PATCHEMBED: "v1"')
        .replace("8, 2", "9, 2")
    )
    expected = dataclasses.replace(VARIANTS["vanilla_vmamba_tiny"].config, drop_path_rate=0.2)
    assert VMambaConfig.from_author_yaml(write(tmp_path / "v0.yaml", text)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL: [", "not a YAML file"),
        ("just words", "expected the authors' configuration"),
        ("MODEL:\n  VSSM:\n    DEPTH: 3", "unknown key MODEL.VSSM.DEPTH"),
        ("MODEL:\n  VSSM:\n    SSM_FORWARDTYPE: m0_noz", "forward_type 'm0_noz' is not supported"),
        ("MODEL:\n  VSSM:\n    SSM_FORWARDTYPE: v05_fast", "forward_type 'v05_fast' is not supported"),
        ("MODEL:\n  VSSM:\n    NORM_LAYER: bn", "norm_layer 'bn' is not supported"),
        ("MODEL:\n  VSSM:\n    GMLP: true", "gmlp, ssm_drop_rate, mlp_drop_rate and patch_size"),
        ("MODEL:\n  VSSM:\n    DOWNSAMPLE: v9", "downsample_version 'v9' is not supported; choose one of v1, v2, v3"),
        ("MODEL:\n  VSSM:\n    SSM_RATIO: 0", "ssm_ratio must leave inner channels"),
    ],
)
def test_author_yaml_that_is_not(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        VMambaConfig.from_author_yaml(write(tmp_path / "x.yaml", text))
    assert "\n" not in str(caught.value)


def test_unknown_author_option() -> None:
    with pytest.raises(ValueError, match="not an option of the authors' VSSM: state_size"):
        VMambaConfig.from_author_options({"state_size": 1})
