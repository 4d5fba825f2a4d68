"""Speculative generation from an autoregressive target, independent of models."""
