"""Presets by name, and single fields changed from the command line."""

import pytest

from jaxspec.errors import ConfigError
from jaxspec.train.experiment import find_experiment, load_experiment
from jaxspec.train.overrides import with_overrides
from tests.train.commands import TINY


def test_a_preset_has_a_name_and_a_file():
    assert find_experiment("fruits64_cpu").name == "fruits64"
    assert find_experiment("drafters/eagle3_fruits64_cpu").drafter is not None
    assert find_experiment(TINY) == load_experiment(TINY)
    with pytest.raises(ConfigError, match="no preset 'fruit'; choose cifar10, "):
        find_experiment("fruit")


def test_fields_change_one_by_one_or_together():
    """Fields that are checked together may change together."""
    tiny = load_experiment(TINY)
    changed = with_overrides(
        tiny,
        [
            "prior.width=24",
            "prior.heads=3",
            "drafter.width=24",
            "drafter.heads=3",
            "drafter.feature_layers=(1,)",
            "train_prior.learning_rate=1e-4",
            "train_drafter.divergence=tvd",
            "data.flips=False",
        ],
    )
    assert (changed.prior.width, changed.prior.heads) == (24, 3)
    assert changed.drafter.feature_layers == (1,)
    assert changed.train_prior.learning_rate == 1e-4
    assert changed.train_drafter.divergence == "tvd" and not changed.data.flips
    assert with_overrides(tiny, []) == tiny


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prior.width", "write FIELD=VALUE"),
        ("prior.depth=3", "prior.depth: no such field; known: vocab_size, layers"),
        ("prior.layers=many", "layers: 'many' is not a whole number"),
        ("prior.layers.x=1", "prior.layers: has no fields"),
        ("prior.vocab_size=99", "the prior is over 99 tokens"),
        ("train_prior.batch=0", "batch=0"),
    ],
)
def test_changes_that_do_not_fit_are_explained(text, words):
    with pytest.raises(ConfigError, match=words):
        with_overrides(load_experiment(TINY), [text])
