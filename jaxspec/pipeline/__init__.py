"""From a folder of models to images."""
