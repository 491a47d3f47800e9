"""Other people's names for our layers and operators.

Networks that import ``mamba_ssm``, ``selective_scan`` or the compiled scans of VMamba and Mamba run where those are
missing after `install`, those that write ``.cuda()`` into their code run on a CPU inside `on_cpu`;
``python -m vmamba.compat script.py`` runs a script that way, unchanged.
"""

from vmamba.compat.install import install
from vmamba.compat.on_cpu import on_cpu

__all__ = ["install", "on_cpu"]
