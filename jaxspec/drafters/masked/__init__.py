"""Masked diffusion models as drafters."""
