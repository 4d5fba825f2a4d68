"""Parallel prompt decoding."""
