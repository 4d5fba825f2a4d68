"""Autoencoder of images and continuous latents."""
