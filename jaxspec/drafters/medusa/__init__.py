"""Medusa and Hydra."""
