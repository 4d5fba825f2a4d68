"""Noise, sampling, caches and the contract that every generator shares."""
