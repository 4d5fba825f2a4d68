# ruff: noqa: E402
"""Benchmark of text generation with `transformers`: equal tokens, equal calls."""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.sampling import Sampling

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from docs.studies.text import STUDY
from docs.studies.text.methods import (
    DRAFTED,
    PLAIN,
    convert_models,
    make_models,
)
from jaxspec.cli.bench import add_options
from jaxspec.core.noise import batch_keys
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import DraftContext, InitContext
from jaxspec.speculative.trees.tree import Tree
from tests.parity.comparing import as_jax
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.parity

TOKENS = 32
# In a small vocabulary, drafts of random weights are sometimes accepted.
SIZES = dict(layers=4, width=64, heads=4, vocab=16, tokens=TOKENS, repeats=1)
PAIRS = {
    "transformers, assisted": "jaxspec, draft model",
    "transformers, DFlash": "jaxspec, block diffusion",
}
METHODS = {PLAIN, "jaxspec, plain", *PAIRS, *PAIRS.values()}


def run(out, *more, **sizes):
    parser = argparse.ArgumentParser()
    add_options(parser, STUDY)
    options = [f"--{name}={value}" for name, value in sizes.items()]
    arguments = parser.parse_args([*options, "--out", str(out), *more])
    arguments.run(arguments)


@pytest.fixture(scope="module")
def stem(tmp_path_factory):
    stem = tmp_path_factory.mktemp("text") / "text"
    run(stem, **SIZES)
    return stem


@pytest.fixture(scope="module")
def report(stem):
    return json.loads(stem.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def rows(report):
    return {row["method"]: row for row in report["rows"]}


def calls(row):
    return round(row["tokens"] / row["tokens_per_call"])


def test_every_method_has_a_row(rows):
    assert rows.keys() == METHODS
    for row in rows.values():
        assert row["tokens"] == TOKENS
        assert 0 < row["min_seconds"] <= row["seconds"] <= row["max_seconds"]
        plain = rows[PLAIN]["seconds"]
        assert row["speedup"] == pytest.approx(plain / row["seconds"])


def test_all_methods_generate_the_same_tokens(rows):
    assert [method for method, row in rows.items() if not row["identical"]] == []


def test_target_calls_agree(rows):
    """The assistant drafts before the prefill in transformers, after it in jaxspec."""
    for method in (PLAIN, "jaxspec, plain"):
        assert calls(rows[method]) == TOKENS
    for baseline, method in PAIRS.items():
        assert 1 < rows[baseline]["tokens_per_call"] <= DRAFTED + 1
        assert abs(calls(rows[baseline]) - calls(rows[method])) <= 2
    baseline, method = (rows[name] for name in list(PAIRS.items())[1])
    assert calls(baseline) == calls(method)


def test_report_has_command_versions_and_rows(stem, report):
    table = stem.with_suffix(".md").read_text()
    assert report["command"].startswith(
        "python -m docs.studies.text --layers 4 --width 64"
    )
    assert report["command"] in table and report["device"] in table
    assert report["versions"].keys() == {"jaxspec", "jax", "torch", "transformers"}
    assert all(f"| {method} | {TOKENS} |" in table for method in METHODS)


def test_assistant_has_the_first_layers_of_the_target():
    models = make_models(layers=4, width=32, heads=2, vocab=16, length=8)
    target, assistant = (
        models.target.state_dict(),
        models.assistant.state_dict(),
    )
    assert all(torch.equal(x, target[name]) for name, x in assistant.items())
    assert 0 < len(assistant) < len(target)


def test_a_block_is_drafted_as_in_transformers(tmp_path):
    """Compares every query of a block, on the target's features of a prompt."""
    models = make_models(layers=4, width=64, heads=4, vocab=50, length=64)
    randomized(models.target, seed=1)
    randomized(models.block, seed=2)
    bundle, loaded_drafters = convert_models(models, tmp_path)
    loaded = loaded_drafters["block diffusion"]
    assert loaded.drafter.feature_layers == (0, 1, 2)
    prompts, anchors = torch.randint(49, (6, 9)), torch.randint(49, (6,))

    states = models.target.model(prompts, output_hidden_states=True).hidden_states
    features = torch.cat([states[i + 1] for i in loaded.drafter.feature_layers], dim=-1)
    block = torch.full((6, DRAFTED + 1), models.block.config.mask_token_id)
    block[:, 0] = anchors
    hidden = models.block(
        noise_embeds=models.target.get_input_embeddings()(block),
        context_hidden_states=features,
        position_ids=torch.arange(9 + DRAFTED + 1)[None],
        use_cache=False,
    ).last_hidden_state
    expected = models.target.lm_head(hidden[:, 1:]).argmax(-1)

    tree, lengths = Tree.chain(DRAFTED), jnp.full(6, 9, jnp.int32)
    start = InitContext(None, as_jax(features), lengths, tree, 6, 20)
    ctx = DraftContext(
        as_jax(anchors),
        as_jax(anchors)[:, None],
        lengths,
        lengths,
        jnp.zeros((6, DRAFTED + 1, 50)),
        batch_keys(0, 6),
        Sampling.create(6, temperature=0.0),
        tree,
        order=("temperature",),
    )
    state = loaded.drafter.init(loaded.params, start)
    draft, _ = jax.jit(loaded.drafter.propose)(loaded.params, state, ctx)
    np.testing.assert_array_equal(draft.tokens[:, 1:], expected.numpy())
    assert len(np.unique(draft.tokens[:, 1:])) > DRAFTED


@pytest.mark.parametrize(
    "sizes, message",
    [
        ({"layers": 1}, "at least 2"),
        ({"width": 36}, "multiple of twice the heads, 8"),
        ({"tokens": 0}, "--tokens 0"),
    ],
    ids=str,
)
def test_impossible_sizes_are_rejected(sizes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(tmp_path / "text", **{**SIZES, **sizes})


def test_missing_packages_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="torch and transformers: pip install"):
        run(tmp_path / "text", **SIZES)
