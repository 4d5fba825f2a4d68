"""Studies outside of the package; run them from a checkout.

`python -m docs.studies.NAME --help` shows the options of a study: compiled, int8,
overhead, relaxation, text.
"""
