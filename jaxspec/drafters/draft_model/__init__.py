"""Separate and early-exit draft models."""
