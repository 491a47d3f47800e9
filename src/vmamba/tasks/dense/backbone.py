"""The backbone of a detector or segmenter that is to be trained."""

from __future__ import annotations

import dataclasses

from vmamba.checkpoints.authors import to_our_names
from vmamba.checkpoints.info import read_config
from vmamba.checkpoints.loading import load_weights
from vmamba.checkpoints.reading import read_checkpoint
from vmamba.checkpoints.recognition import identify
from vmamba.model.backbone import VMamba
from vmamba.model.config import VMambaConfig
from vmamba.model.variants import VARIANTS
from vmamba.tasks.protocol import Job
from vmamba.zoo import create_model


def backbone_config(job: Job) -> VMambaConfig:
    """The architecture that a job names, or that its checkpoint has.

    Raises:
        ValueError: For an unknown name, or where neither says it.
        CheckpointError: If the checkpoint cannot be read.
    """
    if job.model is not None:
        model = create_model(job.model, num_classes=0, **job.model_options)  # says what is wrong with the name
        assert isinstance(model, VMamba)
        return model.config
    config = None
    if job.checkpoint is not None:
        config = read_config(job.checkpoint)
        name = None if config else identify(to_our_names(read_checkpoint(job.checkpoint, job.weights)))
        config = VARIANTS[name].config if name else config
    if config is None:
        raise ValueError("which backbone? give --model NAME; 'vmamba models' lists them")
    return dataclasses.replace(config, num_classes=0, **job.model_options)


def load_backbone(backbone: VMamba, job: Job) -> None:
    """Start from the job's classification weights, where it has any; the norms of the stages stay as they are."""
    if job.checkpoint is not None:
        load_weights(backbone, job.checkpoint, weights=job.weights)
    elif job.pretrained:
        if job.model is None:
            raise ValueError("pretrained needs --model NAME; 'vmamba models' lists them")
        load_weights(backbone, create_model(job.model, pretrained=True).state_dict())
