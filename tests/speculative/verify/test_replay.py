"""Rounds equal recorded ones: drafts, paths and tokens."""

import json

import pytest

from tests.speculative.verify.replays import CASES, FILE, record


@pytest.mark.variants(1)
@pytest.mark.parametrize("case", CASES)
def test_rounds_equal_the_recorded_ones(case):
    wanted = json.loads(FILE.read_text())[case]
    assert len(wanted) > 1
    assert record(case) == wanted
