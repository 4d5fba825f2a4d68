"""Data sets read with `tfds.data_source`; the only package that imports tfds."""
