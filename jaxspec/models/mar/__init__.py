"""Masked models over continuous tokens (MAR)."""
