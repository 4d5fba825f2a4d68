"""Sampling, random noise, KV caches and the `Generator` contract."""
