"""Tokenizers whose tokens are a row."""
