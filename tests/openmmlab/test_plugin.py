"""The plug-in inside the real packages: configuration files, the runner, resuming, the authors' checkpoints."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner

import vmamba
from support.toolboxes import BACKBONE, build, config, shrink
from vmamba import VMambaConfig, create_model
from vmamba.checkpoints.saving import save_weights
from vmamba.data.shapes import CLASSES, write_shapes
from vmamba.errors import CheckpointError, OptionError
from vmamba.integrations.openmmlab import VMamba
from vmamba.tasks.detection.checkpoint import load_detector
from vmamba.tasks.segmentation.checkpoint import load_segmenter

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = BACKBONE.format(dims=96, depths=(2, 2, 8, 2), ratio=1.0, forward="v05_noz", drop_path=0.2)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=4, val=2, image_size=96)
    return root


def runnable(kind: str, shapes: Path, folder: Path) -> Config:
    """Two iterations on a few shapes, then validation; all else is the base file's."""
    settings = shrink(kind, config(kind, folder))
    settings.work_dir = str(folder / "work")
    settings.custom_hooks, settings.visualizer, settings.vis_backends = [], None, []
    settings.default_hooks.pop("visualization")
    settings.log_level = "ERROR"
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        settings[loader].update(num_workers=0, persistent_workers=False)
    settings.train_dataloader.batch_size = 2
    settings.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 2, "val_interval": 2}
    settings.default_hooks.checkpoint = {"type": "CheckpointHook", "by_epoch": False, "interval": 2}
    settings.param_scheduler = []
    if kind == "detection":
        names = {"classes": CLASSES}
        for loader, split in (("train_dataloader", "train"), ("val_dataloader", "val"), ("test_dataloader", "val")):
            settings[loader].dataset.update(
                data_root=str(shapes / "coco"),
                ann_file=f"annotations/instances_{split}.json",
                data_prefix={"img": f"{split}/"},
                metainfo=names,
            )
            resize = next(t for t in settings[loader].dataset.pipeline if t["type"] == "Resize")
            resize["scale"] = (160, 96)
        settings.val_evaluator.ann_file = str(shapes / "coco" / "annotations" / "instances_val.json")
        settings.test_evaluator = settings.val_evaluator
        settings.model.roi_head.bbox_head.num_classes = settings.model.roi_head.mask_head.num_classes = len(CLASSES)
        settings.model.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
    else:
        for loader, split in (
            ("train_dataloader", "training"),
            ("val_dataloader", "validation"),
            ("test_dataloader", "validation"),
        ):
            settings[loader].dataset.update(
                type="BaseSegDataset",  # ADE20KDataset insists on its classes
                img_suffix=".jpg",
                seg_map_suffix=".png",
                reduce_zero_label=True,
                data_root=str(shapes / "ade20k"),
                data_prefix={"img_path": f"images/{split}", "seg_map_path": f"annotations/{split}"},
                metainfo={"classes": ("background", *CLASSES), "palette": [[i * 40, 0, 0] for i in range(5)]},
            )
            for transform in settings[loader].dataset.pipeline:
                if transform["type"] in ("Resize", "RandomResize"):
                    transform["scale"] = (256, 96)
                if transform["type"] == "RandomCrop":
                    transform["crop_size"] = (96, 96)
        settings.model.data_preprocessor.size = (96, 96)
    return settings


@pytest.mark.parametrize(("kind", "metric"), [("detection", "coco/segm_mAP"), ("segmentation", "mIoU")])
def test_runner_trains_validates_and_resumes(kind: str, metric: str, shapes: Path, tmp_path: Path) -> None:
    settings = runnable(kind, shapes, tmp_path)
    settings.experiment_name = f"first_{kind}"
    first = Runner.from_cfg(settings)
    first.train()
    assert first.iter == 2
    again = runnable(kind, shapes, tmp_path)
    again.resume = True
    again.train_cfg.max_iters = 4
    again.train_cfg.val_interval = 4
    again.experiment_name = f"second_{kind}"
    second = Runner.from_cfg(again)
    second.train()
    assert second.iter == 4
    logs = [json.loads(line) for path in (tmp_path / "work").rglob("*.json") for line in path.read_text().splitlines()]
    assert sum(metric in log for log in logs) >= 2  # each validation is logged twice

    # What they trained is ours to use.
    saved = tmp_path / "work" / "iter_4.pth"
    load: Any = load_detector if kind == "detection" else load_segmenter
    ours = load(saved, backbone=VMambaConfig(dims=(8, 16, 32, 64), depths=(1, 1, 1, 1)))
    theirs = second.model.state_dict()
    assert torch.equal(
        ours.state_dict()["backbone." + ("vmamba." if kind != "detection" else "") + "stem.conv1.weight"],
        theirs["backbone.vmamba.stem.conv1.weight"],
    )


@pytest.mark.parametrize(
    ("kind", "file", "entry"),
    [
        ("detection", "mask_rcnn.json", "mask_rcnn_tiny_s1l8_coco"),
        ("segmentation", "upernet.json", "upernet_tiny_s1l8_ade20k"),
    ],
)
def test_the_authors_configuration_takes_the_authors_checkpoint(
    kind: str, file: str, entry: str, tmp_path: Path
) -> None:
    model = build(kind, config(kind, tmp_path, TINY))
    shapes = json.loads((GOLDEN / "dense" / file).read_text())[entry]
    weights = {n: torch.full(shape, float(i)) for i, (n, shape) in enumerate(shapes.items())}
    result = model.load_state_dict(dict(weights), strict=True)
    assert result.missing_keys == result.unexpected_keys == []
    stem = model.state_dict()["backbone.vmamba.stem.conv1.weight"]
    assert torch.equal(stem, weights["backbone.patch_embed.0.weight"])


def test_backbone_by_name_and_its_weights(tmp_path: Path) -> None:
    classifier = create_model("vmamba_pico", num_classes=3)
    weights = save_weights(classifier, tmp_path / "classifier.safetensors")
    backbone = VMamba("vmamba_pico", out_indices=(1, 2), pretrained=weights, drop_path_rate=0.1).train()
    backbone.init_weights()
    maps = backbone(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(48, 8, 12), (96, 4, 6)]
    sum(m.sum() for m in maps).backward()
    assert [n for n, p in backbone.named_parameters() if p.grad is None] == []
    trained = backbone.vmamba.state_dict()
    assert torch.equal(trained["stem.conv1.weight"], classifier.state_dict()["stem.conv1.weight"])


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    missing = VMamba("vmamba_pico", pretrained=tmp_path / "none.pth")
    with pytest.raises(CheckpointError, match=r"none\.pth: no such file"):
        missing.init_weights()
    with pytest.raises(ValueError, match="do you mean 'vmamba_pico'"):
        VMamba("vmamba_pica")


BACKBONES: dict[str, Any] = {
    "VMamba": {"model": "vmamba_pico"},
    "MM_VSSM": {
        "dims": 8, "depths": [1, 1, 2, 1], "ssm_d_state": 1, "ssm_ratio": 1.0, "ssm_conv_bias": False,
        "forward_type": "v05_noz", "downsample_version": "v3", "patchembed_version": "v2", "norm_layer": "ln2d",
    },
}  # fmt: skip


@pytest.fixture(params=list(BACKBONES))
def build_backbone(request: pytest.FixtureRequest) -> Any:
    """A function that builds the backbone from the registry, with further options."""
    return lambda **options: MODELS.build({"type": request.param, **BACKBONES[request.param], **options})


def classifier_of(backbone: Any) -> torch.nn.Module:
    torch.manual_seed(3)
    return vmamba.VMamba(dataclasses.replace(backbone.vmamba.config, num_classes=3))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_init_cfg_names_the_weights(build_backbone: Any, suffix: str, tmp_path: Path) -> None:
    classifier = classifier_of(build_backbone())
    path = tmp_path / f"classifier{suffix}"
    if suffix == ".pth":
        torch.save({"model": classifier.state_dict()}, path)
    else:
        save_weights(classifier, path)
    backbone = build_backbone(init_cfg={"type": "Pretrained", "checkpoint": str(path)})
    assert not torch.equal(backbone.vmamba.stem.conv1.weight, classifier.stem.conv1.weight)
    backbone.init_weights()
    assert backbone.is_init
    ours = backbone.vmamba.state_dict()
    for name, tensor in classifier.state_dict().items():
        if name.startswith(("stem.", "stages.")):
            assert torch.equal(ours[name], tensor), name


def test_init_cfg_takes_a_part_of_a_checkpoint(build_backbone: Any, tmp_path: Path) -> None:
    classifier = classifier_of(build_backbone())
    both = {f"teacher.{name}": t + 1 for name, t in classifier.state_dict().items()}
    both |= {f"student.{name}": t for name, t in classifier.state_dict().items()}
    torch.save(both, tmp_path / "both.pth")
    cfg = {"type": "Pretrained", "checkpoint": str(tmp_path / "both.pth"), "prefix": "student"}
    backbone = build_backbone(init_cfg=cfg)
    backbone.init_weights()
    assert torch.equal(backbone.vmamba.stem.conv1.weight, classifier.stem.conv1.weight)


def test_other_initialisers_of_mmengine(build_backbone: Any) -> None:
    backbone = build_backbone(init_cfg=[{"type": "Constant", "layer": "LayerNorm", "val": 0.5}])
    backbone.init_weights()
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert len(norms) > 8
    assert all((m.weight == 0.5).all() for m in norms)


@pytest.mark.parametrize("frozen", [-1, 0, 2, 3])
def test_frozen_stages_are_not_trained(build_backbone: Any, frozen: int) -> None:
    backbone = build_backbone(frozen_stages=frozen, drop_path_rate=0.5).train()
    sum(m.square().sum() for m in backbone(torch.randn(2, 3, 64, 64))).backward()
    fixed = {"vmamba.stem."} if frozen >= 0 else set()
    fixed |= {f"vmamba.{part}.{i}." for i in range(frozen) for part in ("stages", "stage_norms")}
    for name, parameter in backbone.named_parameters():
        expected = not name.startswith(tuple(fixed)) if fixed else True
        assert parameter.requires_grad == expected == (parameter.grad is not None), name
    for name, module in backbone.named_modules():
        if name.startswith("vmamba.") and not list(module.children()):
            assert module.training != bool(fixed and f"{name}.".startswith(tuple(fixed))), name
    assert not any(p.requires_grad for p in build_backbone(frozen_stages=4).parameters())
    with pytest.raises(OptionError, match="frozen_stages must be from -1 to 4, got 5"):
        build_backbone(frozen_stages=5)


@pytest.mark.parametrize("frozen", [-1, 2])
def test_with_cp_recomputes_blocks_to_the_same_gradients(build_backbone: Any, frozen: int) -> None:
    images = torch.randn(2, 3, 64, 64)
    gradients, calls = [], []
    weights = build_backbone().state_dict()
    for with_cp in (False, True):
        backbone = build_backbone(with_cp=with_cp, frozen_stages=frozen, drop_path_rate=0.0).train()
        backbone.load_state_dict(weights)
        count = [0]
        backbone.vmamba.stages[2].blocks[0].register_forward_pre_hook(lambda *_, c=count: c.__setitem__(0, c[0] + 1))
        sum(m.square().sum() for m in backbone(images)).backward()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
        calls.append(count[0])
    assert calls == [1, 2]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4)


def test_what_is_left_of_a_swin_transformer(tmp_path: Path) -> None:
    """The base files name weights of a Swin Transformer, which are no business of MM_VSSM."""
    base = config("detection", tmp_path).model.backbone
    assert "swin" in base.init_cfg.checkpoint
    backbone = build("detection", config("detection", tmp_path)).backbone
    assert not backbone.init_cfg
    backbone.init_weights()
    options = BACKBONES["MM_VSSM"]
    weights = save_weights(classifier_of(MODELS.build({"type": "MM_VSSM", **options})), tmp_path / "c.safetensors")
    named = {"init_cfg": {"type": "Pretrained", "checkpoint": "none.pth"}, "pretrained": str(weights)}
    MODELS.build({"type": "MM_VSSM", **options, **named}).init_weights()  # as in the authors' files
    with pytest.raises(OptionError, match="either pretrained or an init_cfg"):
        MODELS.build({"type": "VMamba", **BACKBONES["VMamba"], **named})
    with pytest.raises(CheckpointError, match=r"none\.pth: no such file"):
        MODELS.build({"type": "MM_VSSM", **options, "init_cfg": named["init_cfg"]}).init_weights()
