"""Images in, tensors out: reading images for prediction and the data sets."""
