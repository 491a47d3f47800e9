"""VMamba, the visual state space model (Liu et al., NeurIPS 2024).

Importing this package registers its models in timm.
"""

from vmamba import _moved as _moved
from vmamba import ops
from vmamba.checkpoints.loading import load_weights
from vmamba.frozen import freeze
from vmamba.model.backbone import VMamba
from vmamba.model.config import VMambaConfig
from vmamba.zoo import create_model, list_models

__all__ = ["VMamba", "VMambaConfig", "create_model", "freeze", "list_models", "load_weights", "ops"]
