"""What a model is used for."""
