"""`csm_triton`, a file that VMamba's networks carry along, for any device."""

from vmamba.compat.cross_scan import *  # noqa: F403
