"""Policies: tokens that are known after a step of a masked model."""
