"""`python -m docs.studies.text`."""

import sys

from docs.studies.command import run_study
from docs.studies.text import STUDY

sys.exit(run_study(STUDY))
