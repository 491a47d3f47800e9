"""What is written in Triton there."""
