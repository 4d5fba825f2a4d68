"""`python -m docs.studies.compiled`."""

import sys

from docs.studies.command import run_study
from docs.studies.compiled import STUDY

sys.exit(run_study(STUDY))
