"""Vocabularies that are trained on captions."""

import numpy as np
import pytest

from jaxspec.pipeline.captions import tokenize
from jaxspec.train.text_encoder import train_vocabulary

CAPTIONS = ["a red apple, 3d", "penguin, flat", "red heart, noto", "❤, 3d"] * 5


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    file = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    file.write_text(train_vocabulary(CAPTIONS, 300), "utf-8")
    return file


def test_every_text_has_tokens_and_an_end(file):
    """Words and scripts that no caption has are bytes."""
    texts = ["red", "an unknown word", "яблоко", "苹果", "👩\u200d🚀", "\x00\n"]
    ids = tokenize(file, texts, 64)
    lengths = (ids >= 0).sum(axis=1)
    assert lengths.min() >= 2 and ids.max() < 300
    last = ids[np.arange(len(ids)), lengths - 1]
    assert (last == last[0]).all() and (ids == last[0]).sum() == len(ids)


def test_case_and_variation_selectors_do_not_matter(file):
    for one, other in (("Red Apple", "red apple"), ("❤\ufe0f, 3D", "❤, 3d")):
        np.testing.assert_array_equal(*(tokenize(file, [x], 16) for x in (one, other)))
    assert (tokenize(file, ["❤"], 16) != tokenize(file, ["apple"], 16)).any()


def test_frequent_words_are_few_tokens(file):
    common, rare = ((tokenize(file, [x], 64) >= 0).sum() for x in ("apple", "xqzvk"))
    assert common < rare
