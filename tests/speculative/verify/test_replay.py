"""Rounds replay to the number: drafts, paths and tokens as they were recorded."""

import json

import pytest

from tests.speculative.verify.replays import CASES, FILE, record


@pytest.mark.parametrize("case", CASES)
def test_rounds_are_those_on_record(case):
    wanted = json.loads(FILE.read_text())[case]
    assert len(wanted) > 1
    assert record(case) == wanted
