"""Results of any number of images: rows that are written as they come, and are what a later call goes on from."""
