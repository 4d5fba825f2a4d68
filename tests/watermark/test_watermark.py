"""Watermark of tokens: pairs, keys, swaps and the test for it."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from jaxspec.errors import ConfigError, DataError
from jaxspec.watermark import (
    Key,
    codebook_digest,
    detect,
    green_codes,
    mark,
    new_key,
    pair_codes,
    read_key,
    write_key,
)

CODEBOOK = np.random.default_rng(0).normal(size=(8, 3))
MANY = np.random.default_rng(1).normal(size=(64, 4))
MATES = pair_codes(MANY)


def similarity(codebook, pairs):
    unit = codebook / np.linalg.norm(codebook, axis=1, keepdims=True)
    return sum(unit[a] @ unit[b] for a, b in pairs)


def test_pairs_are_the_most_similar_of_all_divisions_into_pairs():
    """All 105 divisions of eight codes."""
    mates = pair_codes(CODEBOOK, neighbors=7)
    np.testing.assert_array_equal(mates[mates], np.arange(8))
    found = similarity(CODEBOOK, [(i, m) for i, m in enumerate(mates) if i < m])
    every = [
        similarity(CODEBOOK, list(zip(order[::2], order[1::2], strict=True)))
        for order in permutations(range(8))
        if all(a < b for a, b in zip(order[::2], order[1::2], strict=True))
    ]
    assert found == pytest.approx(max(every), abs=1e-5)
    assert found > np.median(every) + 0.5


@pytest.mark.parametrize("count", [2, 9, 31])
def test_every_code_has_a_pair_but_the_last_of_an_odd_number(count):
    mates = pair_codes(np.random.default_rng(count).normal(size=(count, 4)), 2)
    codes = np.flatnonzero(mates >= 0)
    assert len(codes) == count - count % 2
    np.testing.assert_array_equal(mates[mates[codes]], codes)
    assert (mates[codes] != codes).all()


def test_one_code_of_each_pair_is_green_by_a_fair_coin():
    green = np.stack([green_codes(Key(i), MATES) for i in range(400)])
    assert (green ^ green[:, MATES]).all()
    assert abs(green.mean(axis=0) - 0.5).max() < 0.13
    # The same coins on every machine and with every version.
    bits = [int(x) for x in green_codes(Key(7), np.array([1, 0, 3, 2, 5, 4]))]
    assert bits == [1, 0, 1, 0, 0, 1]


def test_keys_are_written_and_read(tmp_path):
    """With the pairs that it was used with."""
    key = new_key().paired(CODEBOOK)
    assert key.paired(CODEBOOK) is key and key.secret != new_key().secret
    write_key(tmp_path / "key", key.paired(MANY))
    found = read_key(tmp_path / "key")
    assert found.secret == key.secret and len(found.pairs) == 2
    np.testing.assert_array_equal(
        found.paired(MANY).pairs[codebook_digest(MANY)], MATES
    )
    texts = ["", "12", '{"key": "0f"}', '{"key": "0f", "pairs": {"a": [1, 1]}}']
    texts.append('{"key": "0f", "pairs": {"a": [1, 0, -1, -1]}}')
    for text in texts:
        (tmp_path / "key").write_text(text)
        with pytest.raises(DataError, match="holds no key"):
            read_key(tmp_path / "key")


def test_red_tokens_become_green_where_that_costs_little():
    green, tokens = green_codes(Key(3), MATES), np.arange(-1, 64)
    log_p, cost = np.zeros(65), np.linspace(0, 4, 65)
    out = mark(
        tokens, MATES, green, log_p=log_p, mate_log_p=log_p - cost, threshold=1.5
    )
    for before, after, nats in zip(tokens, out, cost, strict=True):
        swapped = before >= 0 and not green[before] and nats <= 1.5
        assert after == (MATES[before] if swapped else before)
    everything = mark(tokens, MATES, green)
    assert green[everything[1:]].all() and everything[0] == -1
    np.testing.assert_array_equal(mark(everything, MATES, green), everything)
    nothing = mark(
        tokens, MATES, green, log_p=log_p, mate_log_p=log_p, threshold=-np.inf
    )
    np.testing.assert_array_equal(nothing, tokens)
    for settings in ({"threshold": 1.0}, {"threshold": float("nan")}):
        with pytest.raises(ConfigError):
            mark(tokens, MATES, green, **settings)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=12))
def test_the_probability_of_a_false_alarm_is_that_over_all_keys(tokens):
    """By enumeration of the sixteen ways to choose one green code of each pair."""
    mates = pair_codes(CODEBOOK)
    first = np.flatnonzero(mates > np.arange(8))
    ways = []
    for bits in range(16):
        green = np.zeros(8, bool)
        for i, code in enumerate(first):
            green[code if bits >> i & 1 else mates[code]] = True
        ways.append(green)
    counts = np.array([green[tokens].sum() for green in ways])
    for green, count in zip(ways, counts, strict=True):
        found = detect(np.array(tokens), mates, green)
        assert found.green == count and found.tokens == len(tokens)
        assert found.p_value == pytest.approx((counts >= count).mean())


def test_repeated_codes_are_not_independent():
    """The usual binomial test gives false alarms for an image of one color."""
    tokens = np.full(256, 5)
    alarms, usual = [], []
    for key in range(40):
        found = detect(tokens, MATES, green_codes(Key(key), MATES))
        alarms.append(found.p_value <= 1e-3)
        usual.append(binom.sf(found.green - 1, found.tokens, 0.5) <= 1e-3)
    assert not any(alarms) and 10 < sum(usual) < 30


def test_marked_tokens_are_found_and_others_are_not():
    tokens = np.random.default_rng(2).integers(0, 64, 256)
    green = green_codes(Key(11), MATES)
    assert detect(mark(tokens, MATES, green), MATES, green).p_value < 1e-6
    others = [
        detect(tokens, MATES, green_codes(Key(k), MATES)).p_value for k in range(200)
    ]
    assert 0.3 < np.mean(np.array(others) <= 0.5) < 0.75
    assert min(others) > 1e-4
    # The wrong key does not find the mark either.
    wrong = detect(mark(tokens, MATES, green), MATES, green_codes(Key(12), MATES))
    assert wrong.p_value > 1e-3


def test_a_codebook_without_pairs_is_refused():
    with pytest.raises(ConfigError, match="no pairs"):
        pair_codes(np.ones((1, 4)))
