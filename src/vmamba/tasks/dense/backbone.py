"""The backbone of a detector or segmenter that is to be trained."""

from __future__ import annotations

from vmamba.checkpoints.loading import adapted, load_weights
from vmamba.checkpoints.recognition import Checkpoint, open_checkpoint
from vmamba.errors import OptionError
from vmamba.model.backbone import VMamba
from vmamba.model.config import VMambaConfig
from vmamba.tasks.protocol import RGB, Job
from vmamba.zoo import architecture_of, create_model


def job_checkpoint(job: Job) -> Checkpoint | None:
    """The checkpoint that a job starts from, where it has one.

    Raises:
        CheckpointError: If it cannot be read.
    """
    return None if job.checkpoint is None else open_checkpoint(job.checkpoint, job.weights)


def backbone_config(job: Job, checkpoint: Checkpoint | None) -> VMambaConfig:
    """The architecture that a job names, or that its checkpoint has.

    Raises:
        OptionError: For an unknown name or option, or where neither says it.
        CheckpointError: If the checkpoint does not say it.
    """
    if job.model is not None:
        config = architecture_of(job.model)
    elif checkpoint is not None:
        config = checkpoint.architecture()
    else:
        raise OptionError("which backbone? give --model NAME; 'vmamba models' lists them")
    return config.override({**RGB, **job.model_options, "num_classes": 0})


def load_backbone(backbone: VMamba, job: Job, checkpoint: Checkpoint | None) -> None:
    """Start from the job's classification weights, where it has any; the norms of the stages stay as they are.

    Raises:
        CheckpointError: If they do not fit.
    """
    if checkpoint is not None:
        load_weights(backbone, adapted(checkpoint, in_chans=backbone.in_chans))
    elif job.pretrained:
        if job.model is None:
            raise OptionError("pretrained needs --model NAME; 'vmamba models' lists them")
        model = create_model(job.model, pretrained=True, in_chans=backbone.in_chans)
        load_weights(backbone, model.state_dict())
