"""Tokenizers with several tokens a cell."""
