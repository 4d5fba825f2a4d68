"""Sequences that a target generates for its drafter."""

import numpy as np
import pytest

from jaxspec.checkpoint import Checkpoint
from jaxspec.errors import ConfigError
from jaxspec.train.self_generated import class_conditions, self_generated_source
from tests.models.tiny import random_params
from tests.train.tiny import get_config

CONFIG = get_config().prior
PRIOR = Checkpoint("prior", CONFIG, random_params(CONFIG))


def generate(folder, count, seed=0):
    return self_generated_source(
        PRIOR,
        class_conditions(PRIOR),
        count,
        max_cfg_scale=2.0,
        seed=seed,
        cache_dir=folder,
        batch=4,
    )


def test_more_sequences_add_to_those_that_exist(tmp_path):
    """Batches are kept one by one, so that an interrupted run goes on."""
    few = generate(tmp_path, 6)
    files = sorted(tmp_path.rglob("*.npy"))
    assert [file.name for file in files] == ["0000000.npy", "0000004.npy"]
    before = [file.stat().st_mtime_ns for file in files]
    more = generate(tmp_path, 9)
    assert [file.stat().st_mtime_ns for file in files] == before
    np.testing.assert_array_equal(more.tokens[:, :6], few.tokens)
    np.testing.assert_array_equal(more.labels, np.arange(9) % CONFIG.classes)
    assert more.digest == few.digest
    assert generate(tmp_path, 6, seed=1).digest != few.digest


def test_a_target_without_classes_generates_nothing():
    from dataclasses import replace

    text = Checkpoint("prior", replace(CONFIG, condition="none"), PRIOR.params)
    with pytest.raises(ConfigError, match="self_generated=0"):
        class_conditions(text)
