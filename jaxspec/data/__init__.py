"""Data sets served by `tfds.data_source`; the only package that imports tfds."""
