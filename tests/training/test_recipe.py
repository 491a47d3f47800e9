"""Recipes: the released ones say what was published; every field can be overridden."""

from __future__ import annotations

import json
import os
import re
from importlib import resources
from pathlib import Path

import pytest
import torch
import yaml

import vmamba
from support.golden import GOLDEN
from vmamba.cli import main
from vmamba.errors import OptionError
from vmamba.tasks import TASKS, task_class
from vmamba.tasks.detection.mask_rcnn import MaskRCNN, MaskRCNNConfig
from vmamba.tasks.segmentation.upernet import UperNet, UperNetConfig
from vmamba.training.distributed import Processes
from vmamba.training.loop import job_of
from vmamba.training.optimizer import build_optimizer, build_schedule
from vmamba.training.recipe import Recipe, differences
from vmamba.training.recipe_files import list_recipes, load_recipe, parse_overrides, parse_yaml

IMAGENET = [name for name in list_recipes() if name.startswith("imagenet/")]
STEPS = 1281167 // 1024

#: Published by the authors: drop path, top-1.
PUBLISHED = {
    "vanilla_vmamba_tiny": (0.2, 82.2),
    "vanilla_vmamba_small": (0.3, 83.5),
    "vanilla_vmamba_base": (0.6, 83.7),
    "vmamba_tiny_s2l5": (0.2, 82.5),
    "vmamba_small_s2l15": (0.3, 83.6),
    "vmamba_base_s2l15": (0.6, 83.9),
    "vmamba_tiny_s1l8": (0.2, 82.6),
    "vmamba_small_s1l20": (0.3, 83.3),
    "vmamba_base_s1l20": (0.5, 83.8),
}


def test_every_released_model_has_a_recipe() -> None:
    assert {name.removeprefix("imagenet/") for name in IMAGENET} == PUBLISHED.keys()
    released = json.loads((GOLDEN / "released.json").read_text())
    assert PUBLISHED.keys() <= set(released) | set(vmamba.list_models())


@pytest.mark.parametrize("name", IMAGENET)
def test_published_setting(name: str) -> None:
    recipe, model = load_recipe(name), name.removeprefix("imagenet/")
    drop_path, top1 = PUBLISHED[model]
    assert recipe.model == model
    assert recipe.model_options == {"drop_path_rate": drop_path}
    assert recipe.ema == (None if model == "vanilla_vmamba_tiny" else 0.9999)
    assert (recipe.epochs, recipe.batch_size, recipe.optimizer) == (300, 1024, "adamw")
    assert (recipe.betas, recipe.eps, recipe.weight_decay, recipe.clip_grad) == ((0.9, 0.999), 1e-8, 0.05, 5.0)
    options = recipe.options
    assert (options.mixup, options.cutmix, options.mix_switch, options.label_smoothing) == (0.8, 1.0, 0.5, 0.1)
    assert (options.auto_augment, options.color_jitter) == ("rand-m9-mstd0.5-inc1", 0.4)
    assert (options.random_erasing, options.interpolation, options.image_size) == (0.25, "bicubic", 224)

    text = (Path(str(resources.files("vmamba.recipes"))) / f"{name}.yaml").read_text()
    head = text.split("base:")[0]
    for said in ("arXiv:2401.10166", f"top-1 {top1} %", "hours", "A100", "Not run here", f"--recipe {name}"):
        assert said in head


def test_published_learning_rates() -> None:
    """1e-3 at a batch of 1024 after 20 epochs from 1e-6, cosine to 1e-5 at the end."""
    recipe = load_recipe("imagenet/vmamba_tiny_s1l8")
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = torch.optim.AdamW([parameter], lr=recipe.lr * recipe.lr_scale)
    schedule = build_schedule(optimizer, recipe, STEPS)

    def rate(epoch: float) -> float:
        schedule.step_update(int(epoch * STEPS))
        return float(optimizer.param_groups[0]["lr"])

    assert rate(0) == pytest.approx(1e-6)
    assert rate(10) == pytest.approx((1e-3 + 1e-6) / 2, rel=1e-3)
    assert rate(20) == pytest.approx(1e-3)
    assert rate(160) == pytest.approx((1e-3 + 1e-5) / 2, rel=1e-3)  # half of the cosine
    assert rate(300 - 1 / STEPS) == pytest.approx(1e-5, rel=1e-3)


def test_what_is_not_decayed() -> None:
    recipe = load_recipe("imagenet/vmamba_tiny_s1l8")
    model = vmamba.create_model("vmamba_pico", num_classes=3)
    optimizer = build_optimizer(model, recipe)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {names[id(p)] for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    free = set(names.values()) - decayed
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.05}
    assert all(name.endswith((".bias", "A_log", ".D", "dt_proj_bias")) or "norm" in name for name in free)
    assert not any(name.endswith(("bias", "A_log", ".D")) or "norm" in name for name in decayed)
    assert any("conv" in name for name in decayed)


def test_layer_decay() -> None:
    recipe = load_recipe("finetune", {"layer_decay": 0.5, "lr": 1.0})
    model = vmamba.create_model("vmamba_pico", num_classes=3)
    scale = {id(p): g["lr_scale"] for g in build_optimizer(model, recipe).param_groups for p in g["params"]}
    assert scale[id(model.head.fc.weight)] == 1
    assert scale[id(model.stem.conv1.weight)] == min(scale.values()) < 0.1


@pytest.mark.parametrize("task", [UperNet, MaskRCNN])
def test_layer_decay_of_dense_models(task: type[UperNet] | type[MaskRCNN]) -> None:
    """Stem, blocks, heads: each learns twice as fast as the one before, as in the classifier."""
    backbone = vmamba.create_model("vmamba_pico").config
    model = UperNet(UperNetConfig(backbone, ("a",))) if task is UperNet else MaskRCNN(MaskRCNNConfig(backbone, ("a",)))
    recipe = load_recipe("finetune", {"layer_decay": 0.5, "lr": 1.0})
    scale = {id(p): g["lr_scale"] for g in build_optimizer(model, recipe).param_groups for p in g["params"]}
    fractions: dict[str, set[float]] = {}
    for name, parameter in model.named_parameters():
        block = re.search(r"(stem|stages\.\d\.(?:blocks\.\d|downsample))\.", name)
        fractions.setdefault(block[1] if block else "heads", set()).add(scale[id(parameter)])
    blocks = ["stem", "stages.0.blocks.0", "stages.1.blocks.0", "stages.2.blocks.0", "stages.2.blocks.1"]
    for i, name in enumerate([*blocks, "stages.3.blocks.0", "heads"]):
        assert fractions.pop(name) == {0.5 ** (6 - i)}
    assert fractions == {
        "stages.1.downsample": {0.5**4}, "stages.2.downsample": {0.5**3}, "stages.3.downsample": {0.5},
    }  # fmt: skip


def test_print_config_can_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed, read again, is the same recipe; overrides are in it."""
    arguments = ["train", "--recipe", "imagenet/vmamba_tiny_s1l8", "--data", "2024-01-31", "--lr", "1e-3"]
    arguments += ["--set", "hflip=0", "crop_scale=[0.5, 1]", "ema=null", "--strict", "--print-config"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    (tmp_path / "mine.yaml").write_text(printed)
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert (recipe.data, recipe.lr, recipe.ema, recipe.strict) == ("2024-01-31", 1e-3, None, True)
    assert (recipe.options.hflip, recipe.options.crop_scale) == (0.0, (0.5, 1.0))
    assert recipe.to_yaml() == printed
    assert set(yaml.safe_load(printed)) == set(Recipe.names())


def test_recipes_are_those_of_the_first_release() -> None:
    """Shared bases change no value."""
    before = json.loads(Path(__file__).with_name("first_release.json").read_text())
    assert before.keys() <= set(list_recipes())
    for name, values in before.items():
        values["grad_accum_steps"] = values.pop("accumulate")
        now = load_recipe(name).as_dict()
        assert now.pop("max_pixels") is None  # added since
        if values["task"] == "classification":
            assert not now["options"].pop("teacher")
            assert not now["options"].pop("head_first")
            now["options"] = {n: v for n, v in now["options"].items() if not n.startswith("teacher_")}
        if values["task"] == "segmentation":
            assert now["options"].pop("label_values") is None
        assert now == values, name


def test_bases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One's own recipe on one of the package, and on a file beside it; options are merged one by one."""
    (tmp_path / "mine.yaml").write_text("base: imagenet/vmamba_tiny_s1l8\nlr: 1e-3\noptions: {mixup: 0}")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "other.yaml").write_text("base: ../mine.yaml\nepochs: 30\nmodel_options: {scan: cascade}")
    published, mine = load_recipe("imagenet/vmamba_tiny_s1l8"), load_recipe(str(tmp_path / "mine.yaml"))
    assert mine == published.replace(lr=1e-3, options=published.options.replace(mixup=0.0))
    other = load_recipe(str(tmp_path / "sub" / "other.yaml"), {"cutmix": 0.5})
    assert other == mine.replace(epochs=30, model_options={"scan": "cascade"}, options=mine.options.replace(cutmix=0.5))

    (tmp_path / "circle.yaml").write_text("base: mine.yaml")
    (tmp_path / "mine.yaml").write_text("base: circle.yaml")
    for name, said in (
        ("circle.yaml", "base 'circle.yaml' is based on this recipe itself"),
        ("sub/other.yaml", "is based on this recipe itself"),
    ):
        with pytest.raises(OptionError, match=said):
            load_recipe(str(tmp_path / name))
    (tmp_path / "mine.yaml").write_text("base: imagenet/vmamba_tini_s1l8")
    with pytest.raises(OptionError, match=r"mine.yaml: base: unknown recipe .* do you mean 'imagenet/vmamba_tiny_s"):
        load_recipe(str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text("base: [1]")
    with pytest.raises(OptionError, match="base must be the name or path of a recipe, got"):
        load_recipe(str(tmp_path / "mine.yaml"))


def test_name_of_the_first_release(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text("accumulate: 4")
    with pytest.warns(FutureWarning, match="'accumulate' is now 'grad_accum_steps'"):
        assert load_recipe(str(tmp_path / "old.yaml")).grad_accum_steps == 4
    with pytest.warns(FutureWarning, match="grad_accum_steps"):
        assert load_recipe("scratch", {"accumulate": 2}).grad_accum_steps == 2


def test_differences() -> None:
    recipe = load_recipe("scratch", {"data": "here"})
    saved = {**recipe.as_dict(), "accumulate": 2, "lr": 0.5, "data": "there"}
    del saved["grad_accum_steps"], saved["options"]["keep_head"]  # of a release that did not have them
    saved["options"]["mixup"] = 0.3
    assert differences(saved, recipe) == {"lr": (0.5, 0.003), "options.mixup": (0.3, 0.0)}


def test_paths_with_any_bytes(tmp_path: Path) -> None:
    """A folder whose name is not UTF-8 survives the way through YAML."""
    recipe = Recipe(data=os.fsdecode(b"caf\xe9 \xf0\x9f\x90\x88"), checkpoint=Path("a b.pth"))  # type: ignore[arg-type]
    assert recipe.checkpoint == "a b.pth"
    assert Recipe.of(parse_yaml(recipe.to_yaml())) == recipe


def test_no_option_of_a_task_hides_a_field() -> None:
    for name in TASKS:
        assert not set(task_class(name).Options.names()) & set(Recipe.names())


@pytest.mark.parametrize("name", list_recipes())
def test_recipes_are_valid(name: str) -> None:
    recipe = load_recipe(name)
    assert Recipe.of(recipe.as_dict()) == recipe
    job = job_of(load_recipe(name, {"data": "somewhere"}), Processes(torch.device("cpu"), rank=1, size=2))
    assert job.batch_size * 2 == recipe.batch_size


def test_overrides_are_yaml() -> None:
    assert parse_overrides(["a=1", "b=x=y", "c-d=[1, 2]", "e=null", "f=", "g=1e-3", "h=2024-01-31", "i=-2E+5"]) == {
        "a": 1, "b": "x=y", "c_d": [1, 2], "e": None, "f": None, "g": 1e-3, "h": "2024-01-31", "i": -2e5,
    }  # fmt: skip


def test_weights_on_the_command_line_take_the_place_of_the_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "--recipe", "coco/vmamba_tiny_s1l8_1x", "--data", "coco", "--print-config"]
    assert main(command) == 0
    assert yaml.safe_load(capsys.readouterr().out)["pretrained"] is True
    assert main([*command, "--checkpoint", "detector.pth"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["pretrained"], settings["checkpoint"]) == (False, "detector.pth")
    assert main([*command, "--checkpoint", "detector.pth", "--pretrained"]) == 2
    assert "not both" in capsys.readouterr().err
