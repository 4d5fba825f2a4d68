"""Speculative generation from an autoregressive target; knows no model."""
