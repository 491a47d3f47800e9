"""Recipes that come with the package: YAML files, named by their path without ``.yaml``."""
