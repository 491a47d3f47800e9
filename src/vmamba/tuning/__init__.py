"""Search for better settings of a recipe, by Optuna."""
