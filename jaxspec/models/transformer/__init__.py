"""Autoregressive transformer."""
