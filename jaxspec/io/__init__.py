"""Files: atomic writing, text, images."""
