"""Two encoders that match images with captions."""
