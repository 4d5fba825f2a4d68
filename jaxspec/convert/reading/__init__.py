"""Readers for checkpoint files of other frameworks, which never run code from them."""
