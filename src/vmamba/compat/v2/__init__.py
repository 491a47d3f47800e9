"""The authors' second generation (VMamba, March 2024 on), as ChangeMamba and others copied it.

The same arguments, defaults, layouts and entry names, so that code and checkpoints fit as they are; computed by the
operators of `vmamba.ops`. ``forward_type="v2"`` and ``"v3"`` mean the mathematics of ``"v05"``: they differ in
implementation alone.
"""

from vmamba.compat.v2.layers import LayerNorm2d, Linear2d, Mlp, Permute, gMlp
from vmamba.compat.v2.ss2d import SS2D, VSSBlock
from vmamba.compat.v2.vssm import VSSM, Backbone_VSSM

__all__ = ["SS2D", "VSSM", "Backbone_VSSM", "LayerNorm2d", "Linear2d", "Mlp", "Permute", "VSSBlock", "gMlp"]
