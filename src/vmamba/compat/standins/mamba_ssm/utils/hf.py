"""Downloads of language models, which vision networks import and do not use."""


def load_config_hf(*_: object, **__: object) -> None:
    """Refuse: the stand-in for ``mamba_ssm`` has no language models."""
    raise NotImplementedError("vmamba stands in for mamba_ssm without its language models: install mamba_ssm")


def load_state_dict_hf(*_: object, **__: object) -> None:
    """Refuse: the stand-in for ``mamba_ssm`` has no language models."""
    raise NotImplementedError("vmamba stands in for mamba_ssm without its language models: install mamba_ssm")
