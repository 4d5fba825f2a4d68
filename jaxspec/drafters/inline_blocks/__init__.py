"""Blocks that are drafted within the verify pass."""
