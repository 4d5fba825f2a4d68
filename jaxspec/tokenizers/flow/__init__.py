"""Tokenizers whose decoder is a flow from noise to images."""
