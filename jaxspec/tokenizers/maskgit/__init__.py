"""MaskGIT's tokenizer."""
