"""Drafters without training."""
