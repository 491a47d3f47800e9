"""One step of a scan."""

from vmamba.compat.mamba2 import selective_state_update

__all__ = ["selective_state_update"]
