"""`python -m docs.studies.relaxation`."""

import sys

from docs.studies.command import run_study
from docs.studies.relaxation import STUDY

sys.exit(run_study(STUDY))
