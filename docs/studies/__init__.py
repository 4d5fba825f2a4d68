"""Studies outside of the package; run them from a checkout.

`python -m docs.studies.NAME --help` shows the options of a study: choice, compiled,
continuous, device, engines, int8, overhead, relaxation, text.
"""
