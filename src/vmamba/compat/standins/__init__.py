"""Modules under other packages' names; `vmamba.compat.install` puts this folder at the end of ``sys.path``."""
