"""Checkpoint files of other frameworks, read without running anything in them."""
