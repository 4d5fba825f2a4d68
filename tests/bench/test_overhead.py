"""Cost of a round without models."""

import pytest

from docs.studies.overhead import measure_overhead, overhead_markdown


@pytest.mark.slow
def test_rounds_without_models_are_compared_with_a_softmax():
    result = measure_overhead(
        batch=1, nodes=4, vocab=256, repeats=2, verifiers=("coupled",)
    )
    assert [row["branches"] for row in result["rows"]] == [2, 2, 1]
    assert [bool(row["filters"]) for row in result["rows"]] == [True, False, False]
    for row in result["rows"]:
        assert row["nodes"] == 4
        assert row["ratio"] == row["round_seconds"] / row["softmax_seconds"] > 0
    text = overhead_markdown({"command": "python -m docs.studies.overhead", **result})
    assert text.count("| coupled |") == 3
    assert text.count("top_k 1000, top_p 0.95") == 1
    assert "on accelerators only" in text  # the tests run on a CPU
