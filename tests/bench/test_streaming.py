"""Benchmarks of continuous batching and of int8 weights, on a tiny bundle."""

import pytest

from docs.studies.int8 import bench_int8, int8_markdown
from jaxspec.bench.streaming import bench_streaming, streaming_markdown
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.speculative.trees.tree import Tree
from tests.tiny_bundle import save_bundle

TREE = Tree.named("0,1,00")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.mark.slow
def test_continuous_batching_is_compared_with_lockstep(folder):
    bundle = load_bundle(folder)
    loaded = load_drafter("jacobi", bundle)
    rows = bench_streaming(bundle, TREE, loaded, num=9, batch=3, waits=[1], repeats=1)
    assert [row["method"] for row in rows] == ["lockstep", "refill, wait 1"] * 2
    lockstep, refill = rows[2:]  # lengths differ
    assert refill["rounds"] < lockstep["rounds"]
    assert refill["slot_utilization"] > lockstep["slot_utilization"]
    fields = {"checkpoint": "tiny", "command": "c", "num": 9, "nodes": 4}
    text = streaming_markdown({**fields, "batch": 3, "rows": rows})
    assert text.count("| refill, wait 1 |") == 2


@pytest.mark.slow
def test_int8_weights_are_compared_with_float32(folder):
    result = bench_int8(
        load_bundle(folder),
        load_bundle(folder, int8=True),
        TREE,
        drafter="jacobi",
        num=3,
        batch=2,
    )
    assert result["identical"] and result["bytes_int8"] < result["bytes"] / 2
    assert 0 < result["logit_rms"] < result["logit_max"] < 1
    assert abs(result["nll"] - result["nll_int8"]) < 0.1 and result["kl"] > 0
    assert "identical tokens, for each model: yes" in int8_markdown(
        {"command": "c", **result}
    )
