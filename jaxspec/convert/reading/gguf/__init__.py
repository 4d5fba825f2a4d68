"""GGUF files of llama.cpp: metadata, block-quantized tensors and a vocabulary."""
