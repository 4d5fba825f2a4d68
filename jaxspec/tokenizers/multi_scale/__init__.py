"""Tokenizer of token maps that grow (VAR)."""
