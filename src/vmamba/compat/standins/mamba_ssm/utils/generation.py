"""A base class that vision networks import and do not use."""


class GenerationMixin:
    """Text generation, which is not served."""

    def generate(self, *_: object, **__: object) -> None:
        """Refuse: the stand-in for ``mamba_ssm`` has no text generation."""
        raise NotImplementedError("vmamba stands in for mamba_ssm without its language models: install mamba_ssm")
