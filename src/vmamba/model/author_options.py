"""The option names of the authors' code, translated into the fields of `VMambaConfig`."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vmamba.errors import OptionError
from vmamba.files import require_file

# The authors' `forward_type` is a scan, then tags: "v052d_onnone_noz".
_SCANS = {
    **dict.fromkeys(("v0", "v0seq", "v01", "v02", "v03", "v04", "v05", "v2", "v3"), "cross"),
    **dict.fromkeys(("v051d", "v31d"), "unidirectional"),
    **dict.fromkeys(("v052d", "v32d"), "bidirectional"),
    **dict.fromkeys(("v052dc", "v32dc"), "cascade"),
}
_TAGS: dict[str, dict[str, Any]] = {
    "noz": {"gate": False},
    "nozact": {"gate_act": False},
    "oact": {"out_act": True},
    "no32": {},  # a precision hint; the state is always float32 here
    "onnone": {"out_norm": "none"},
    "ondwconv3": {"out_norm": "dwconv3x3"},
    "oncnorm": {"out_norm": "layernorm_dwconv3x3"},
    "onsoftmax": {"out_norm": "softmax"},
    "onsigmoid": {"out_norm": "sigmoid"},
}
INITS = {"v0": "mamba", "v1": "rand", "v2": "zero"}
_STEMS = {"v1": "patchify", "v2": "overlapping"}
_DOWNSAMPLES = {"v1": "patch_merging", "v2": "conv2x2", "v3": "conv3x3"}

#: Defaults of the authors' model class.
_DEFAULTS: dict[str, Any] = {
    "patch_size": 4,
    "in_chans": 3,
    "num_classes": 1000,
    "depths": [2, 2, 9, 2],
    "dims": 96,
    "ssm_d_state": 16,
    "ssm_ratio": 2.0,
    "ssm_dt_rank": "auto",
    "ssm_act_layer": "silu",
    "ssm_conv": 3,
    "ssm_conv_bias": True,
    "ssm_drop_rate": 0.0,
    "ssm_init": "v0",
    "forward_type": "v2",
    "mlp_ratio": 4.0,
    "mlp_act_layer": "gelu",
    "mlp_drop_rate": 0.0,
    "gmlp": False,
    "drop_path_rate": 0.1,
    "patch_norm": True,
    "norm_layer": "ln",
    "downsample_version": "v2",
    "patchembed_version": "v1",
    "posembed": False,
    "imgsize": 224,
    # No effect on what is computed, here or there.
    "use_checkpoint": False,
    "ssm_rank_ratio": 2.0,
    # Of their backbone class for detection and segmentation.
    "type": None,
    "out_indices": None,
    "pretrained": None,
}

#: YAML key under MODEL.VSSM → option, with the defaults of their configuration file where those differ.
_YAML_KEYS = {
    "PATCH_SIZE": "patch_size",
    "IN_CHANS": "in_chans",
    "DEPTHS": "depths",
    "EMBED_DIM": "dims",
    "SSM_D_STATE": "ssm_d_state",
    "SSM_RATIO": "ssm_ratio",
    "SSM_RANK_RATIO": "ssm_rank_ratio",
    "SSM_DT_RANK": "ssm_dt_rank",
    "SSM_ACT_LAYER": "ssm_act_layer",
    "SSM_CONV": "ssm_conv",
    "SSM_CONV_BIAS": "ssm_conv_bias",
    "SSM_DROP_RATE": "ssm_drop_rate",
    "SSM_INIT": "ssm_init",
    "SSM_FORWARDTYPE": "forward_type",
    "MLP_RATIO": "mlp_ratio",
    "MLP_ACT_LAYER": "mlp_act_layer",
    "MLP_DROP_RATE": "mlp_drop_rate",
    "PATCH_NORM": "patch_norm",
    "NORM_LAYER": "norm_layer",
    "DOWNSAMPLE": "downsample_version",
    "PATCHEMBED": "patchembed_version",
    "POSEMBED": "posembed",
    "GMLP": "gmlp",
}
_YAML_DEFAULTS = {"patchembed_version": "v2"}


def options_from_yaml(path: Path, within: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Constructor options from a YAML file of the authors, its BASE files first.

    Args:
        path: The file.
        within: Files whose BASE it is.

    Raises:
        OSError: If the file cannot be read.
        OptionError: If it is not such a file, or has a key that is not theirs.
    """
    if path.resolve() in within:
        raise OptionError(f"{path}: is its own BASE")
    try:
        require_file(path)
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise OptionError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict) or not isinstance(tree.get("MODEL", {}), dict):
        raise OptionError(f"{path}: expected the authors' configuration, a mapping with MODEL: VSSM: …")
    options = dict(_YAML_DEFAULTS)
    bases = tree.get("BASE") or []
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise OptionError(f"{path}: BASE must be a list of files")
    for base in filter(None, bases):
        options |= options_from_yaml(path.parent / base, (*within, path.resolve()))
    model, data = tree.get("MODEL", {}), tree.get("DATA") or {}
    vssm = model.get("VSSM") or {}
    if not isinstance(vssm, dict) or not isinstance(data, dict):
        raise OptionError(f"{path}: MODEL.VSSM and DATA must be mappings")
    for key, value in vssm.items():
        if key not in _YAML_KEYS:
            raise OptionError(f"{path}: unknown key MODEL.VSSM.{str(key)[:80]}")
        options[_YAML_KEYS[key]] = value
    for section, key, option in (
        (model, "NUM_CLASSES", "num_classes"),
        (model, "DROP_PATH_RATE", "drop_path_rate"),
        (data, "IMG_SIZE", "imgsize"),
    ):
        if key in section:
            options[option] = section[key]
    return options


def fields_from_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `VMambaConfig` from the constructor options of the authors' ``VSSM``."""
    unknown = sorted(set(options) - set(_DEFAULTS))
    if unknown:
        raise OptionError(f"not an option of the authors' VSSM: {', '.join(unknown)}")
    opt = {**_DEFAULTS, **options}
    try:
        return _fields(opt)
    except OptionError:
        raise
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(f"options of the authors' VSSM: {str(error)[:200]}") from None


def _fields(opt: Mapping[str, Any]) -> dict[str, Any]:
    if str(opt["norm_layer"]).lower() not in ("ln", "ln2d"):
        raise OptionError(
            f"norm_layer {reprlib.repr(opt['norm_layer'])} is not supported: no released model uses it; use 'ln2d'"
        )
    if opt["gmlp"] or opt["ssm_drop_rate"] or opt["mlp_drop_rate"] or opt["patch_size"] != 4:
        raise OptionError("gmlp, ssm_drop_rate, mlp_drop_rate and patch_size other than 4 are not supported")
    fields = {
        "in_chans": opt["in_chans"],
        "num_classes": opt["num_classes"],
        "dims": _dims(opt["dims"], len(opt["depths"])),
        "depths": tuple(opt["depths"]),
        "d_state": opt["ssm_d_state"],
        "ssm_ratio": float(opt["ssm_ratio"]),
        "dt_rank": opt["ssm_dt_rank"],
        "ssm_act": str(opt["ssm_act_layer"]).lower(),
        "ssm_conv": opt["ssm_conv"] if opt["ssm_conv"] > 1 else 0,
        "ssm_conv_bias": opt["ssm_conv_bias"],
        "ssm_init": _choice("ssm_init", opt["ssm_init"], INITS),
        "mlp_ratio": float(opt["mlp_ratio"]),
        "mlp_act": str(opt["mlp_act_layer"]).lower(),
        "stem": _choice("patchembed_version", opt["patchembed_version"], _STEMS),
        "downsample": _choice("downsample_version", opt["downsample_version"], _DOWNSAMPLES),
        "patch_norm": opt["patch_norm"],
        "pos_embed_size": opt["imgsize"] if opt["posembed"] else None,
        "drop_path_rate": opt["drop_path_rate"],
    }
    return fields | forward_type_fields(str(opt["forward_type"]))


def forward_type_fields(forward_type: str) -> dict[str, Any]:
    """Fields of `VMambaConfig` from the authors' name of a scan and its tags: ``"v052d_onnone_noz"``.

    Raises:
        OptionError: For a name that no released code knows.
    """
    scan, *tags = re.sub(r"(?<=[\ddc])(no32|noz)", r"_\1", forward_type).split("_")  # "v3noz" is older than "v3_noz"
    if scan not in _SCANS or any(tag not in _TAGS for tag in tags):
        raise OptionError(
            f"forward_type {reprlib.repr(forward_type)} is not supported; "
            f"scans: {', '.join(_SCANS)}; tags: {', '.join(_TAGS)}"
        )
    fields: dict[str, Any] = {
        "scan": _SCANS[scan],
        "gate": True,
        "gate_act": True,
        "out_act": False,
        "out_norm": "layernorm",
    }
    for tag in tags:
        fields |= _TAGS[tag]
    if scan in ("v0", "v0seq"):  # their first block ignores these options
        fields |= {"ssm_act": "silu", "ssm_conv": 3, "ssm_conv_bias": True, "ssm_init": "mamba"}
    return fields


def _choice(option: str, value: object, names: Mapping[str, str]) -> str:
    if value not in names:
        raise OptionError(f"{option} {reprlib.repr(value)} is not supported; choose one of {', '.join(names)}")
    return names[str(value)]


def _dims(dims: int | list[int], stages: int) -> tuple[int, ...]:
    return tuple(dims * 2**i for i in range(stages)) if isinstance(dims, int) else tuple(dims)
