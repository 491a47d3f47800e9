"""Other people's names for our layers and operators.

`install` lets networks that import ``mamba_ssm``, ``selective_scan`` or the compiled extensions of VMamba and Mamba run
where those are missing; ``python -m vmamba.compat script.py`` runs a script that way, unchanged.
"""

from vmamba.compat.install import install

__all__ = ["install"]
