"""Pytest plugin that puts our models among those which timm's own ``tests/test_models.py`` runs on."""

import timm.models._registry as registry

import vmamba

# Some of timm's tests select models by the module they come from; this one's tests fit ours.
registry._module_to_models["convnext"].update(vmamba.list_models(relatives=True))
