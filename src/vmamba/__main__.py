"""``python -m vmamba``."""

import sys

from vmamba_command import main

sys.exit(main())
