"""Weights on the Hugging Face Hub: pushed with a model card that is made from what training wrote, and pulled.

A repository holds ``model.safetensors``, its description ``model.json``, ``README.md`` (the card) and pictures.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch import nn

from vmamba.checkpoints.info import ModelInfo, info_path, read_info
from vmamba.errors import CheckpointError, DownloadError, OptionError
from vmamba.files import require_file
from vmamba.terminal import printable
from vmamba.zoo import model_from_checkpoint

WEIGHTS, PICTURES = "model.safetensors", ("*.png",)
#: Task → the Hub's name of it.
PIPELINES = {
    "classification": "image-classification",
    "detection": "object-detection",
    "segmentation": "image-segmentation",
}
_LISTED = 50


def push_to_hub(weights: str | Path, repo: str, *, licence: str = "other", private: bool = False) -> str:
    """Put weights, their description, a model card and the run's pictures into a repository, made where there is none.

    Args:
        weights: A ``.safetensors`` file with its description beside it, as training and `vmamba convert` leave it.
        repo: ``NAME/MODEL``.
        licence: The weights' licence, the Hub's name of it: ``mit``, ``apache-2.0`` …
        private: Make a repository that others do not see.

    Returns:
        Address of the commit.

    Raises:
        OptionError: For another file, or one without a description.
        DownloadError: If the Hub refuses.
    """
    path = Path(weights)
    require_file(path)
    info = read_info(path)
    if path.suffix != ".safetensors" or info is None:
        raise OptionError(f"{path}: give .safetensors with its description beside it; 'vmamba convert' writes both")
    with tempfile.TemporaryDirectory() as folder, _hub_errors(repo) as hub:
        staged = Path(folder)
        shutil.copy(path, staged / WEIGHTS)
        (staged / WEIGHTS).with_suffix(".json").write_text(info.to_json(), encoding="utf-8", errors="backslashreplace")
        pictures = _pictures(path)
        for picture in pictures:
            shutil.copy(picture, staged / picture.name)
        card = model_card(info, repo, licence, [picture.name for picture in pictures])
        (staged / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
        api = hub.HfApi()
        api.create_repo(repo, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo, folder_path=staged, commit_message="Upload weights with vmamba")
    return str(commit.commit_url)


def pull(repo: str, folder: str | Path, *, revision: str | None = None) -> Path:
    """Download the weights of a repository and their description into a folder; returns the path of the weights.

    Args:
        repo: ``NAME/MODEL``.
        folder: Made where there is none.
        revision: Branch, tag or commit.

    Raises:
        DownloadError: If there is no such repository, or it holds no ``model.safetensors``.
    """
    return _download(repo, revision, local_dir=folder)


def from_pretrained(repo: str, *, revision: str | None = None, **options: Any) -> nn.Module:
    """The classifier of a repository, downloaded once into the Hub's cache.

    Args:
        repo: ``NAME/MODEL``.
        revision: Branch, tag or commit.
        options: See `vmamba.zoo.model_from_checkpoint`.

    Raises:
        DownloadError: See `pull`.
        CheckpointError: If the weights are not a classifier's.
    """
    path = _download(repo, revision)
    info = read_info(path)
    if info is not None and info.task != "classification":
        raise CheckpointError(f"{repo}: is for {info.task}; pull it, and load it with vmamba.tasks.{info.task}")
    return model_from_checkpoint(path, **options)


def model_card(info: ModelInfo, repo: str, licence: str, pictures: list[str]) -> str:
    """The card of a model: Markdown below the Hub's fields.

    Args:
        info: Description of the weights.
        repo: ``NAME/MODEL``.
        licence: The Hub's name of it.
        pictures: Names of pictures in the repository.
    """
    head = {
        "library_name": "vmamba",
        "license": licence,
        "pipeline_tag": PIPELINES[info.task],
        "tags": ["vmamba", "state-space-model"],
    }
    command = {"classification": "predict", "detection": "detect", "segmentation": "segment"}[info.task]
    parts = [
        "---\n" + "".join(f"{key}: {json.dumps(value)}\n" for key, value in head.items()) + "---",
        f"# {_cell(repo.partition('/')[2] or repo)}",
        f"A [VMamba](https://arxiv.org/abs/2401.10166) for {info.task}, made with the package `vmamba`.",
        f"    vmamba pull {repo} --output weights\n    vmamba {command} photos --checkpoint weights/{WEIGHTS}",
    ]
    if info.training:
        parts += ["## Training", _table(info.training)]
    if info.preprocessing is not None:
        parts += ["## Images", _table(vars(info.preprocessing))]
    if info.class_names:
        names = [_cell(name) for name in info.class_names[:_LISTED]]
        more = len(info.class_names) - len(names)
        parts += [
            f"## {len(info.class_names)} classes",
            ", ".join(names) + (f", and {more} more in `model.json`" if more else ""),
        ]
    parts += ["## Architecture", _table(info.architecture)]
    parts += [f"![{name}]({name})" for name in pictures]
    parts += ["Measured by whoever trained it; not verified by the Hub or by VMamba's authors."]
    return "\n\n".join(parts) + "\n"


def _table(values: Mapping[str, Any]) -> str:
    rows = [f"| {_cell(name)} | {_cell(value)} |" for name, value in values.items() if value not in (None, "", [], {})]
    return "\n".join(["| | |", "|---|---|", *rows])


def _cell(value: object) -> str:
    """A value that no Markdown or HTML comes out of."""
    text = printable(f"{value:.4g}" if isinstance(value, float) else value)
    for character in "\\|<>[]`*_":
        text = text.replace(character, f"&#{ord(character)};")
    return text


def _pictures(weights: Path) -> list[Path]:
    """The pictures that training left in the folder of the run, and what lies beside the weights."""
    folders = [weights.parent, *([weights.parent.parent] if weights.parent.name == "weights" else [])]
    return sorted({picture.name: picture for folder in folders for picture in folder.glob(PICTURES[0])}.values())


def _download(repo: str, revision: str | None, **where: Any) -> Path:
    with _hub_errors(repo) as hub:
        path = Path(hub.hf_hub_download(repo, WEIGHTS, revision=revision, **where))
        with suppress(hub.errors.EntryNotFoundError):  # weights of others, which are recognised by their entries
            hub.hf_hub_download(repo, info_path(WEIGHTS).name, revision=revision, **where)
    return path


@contextmanager
def _hub_errors(repo: str) -> Iterator[Any]:
    """The Hub's library; its errors as one line."""
    import huggingface_hub as hub  # here, for its import takes long

    try:
        yield hub
    except hub.errors.HFValidationError as error:
        raise OptionError(f"{repo}: is no repository's name: {_line(error)}") from None
    except hub.errors.RepositoryNotFoundError:
        raise DownloadError(
            f"{repo}: the Hub has no such repository, or not for you; check the name, or log in with 'hf auth login'"
        ) from None
    except hub.errors.LocalEntryNotFoundError:  # its text speaks of the cache
        raise DownloadError(
            f"{repo}: the Hub cannot be reached, and nothing of it is here; check the network"
        ) from None
    except hub.errors.EntryNotFoundError:
        raise DownloadError(f"{repo}: holds no {WEIGHTS}; it was not pushed by vmamba") from None
    except (hub.errors.HTTPError, OSError, RuntimeError) as error:
        raise DownloadError(f"{repo}: the Hub cannot be used: {_line(error)}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
