"""Image classifier."""
