"""T5 text encoder."""
