"""Masked diffusion over tokens."""
