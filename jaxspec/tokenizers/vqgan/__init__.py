"""VQGAN tokenizer."""
