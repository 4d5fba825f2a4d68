"""Published sizes, without allocating parameters."""

import pytest

from jaxspec.checkpoint import parameter_count
from jaxspec.errors import ConfigError
from jaxspec.models.next_scale.presets import PRESETS, preset
from jaxspec.tokenizers.multi_scale.model import PRESETS as TOKENIZERS
from jaxspec.tokenizers.multi_scale.scales import shared_convs

# Millions, of VAR's table 1 and its repository.
PUBLISHED = {
    "var-d16": 310.3,
    "var-d20": 600.9,
    "var-d24": 1033,
    "var-d30": 2010,
    "var-d36-s": 2354,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_sizes(name):
    count = parameter_count(preset(name)) / 1e6
    assert count == pytest.approx(PUBLISHED[name], rel=5e-4)


def test_a_model_that_refines_has_its_last_layers_twice():
    """HMAR-d16 is published with 465 M; other depths without a number."""
    assert set(PRESETS) - set(PUBLISHED) == {f"hmar-d{n}" for n in (16, 20, 24, 30)}
    assert parameter_count(preset("hmar-d16")) / 465e6 == pytest.approx(1, abs=0.01)
    assert preset("hmar-d30").mask_layers == 8


def test_the_tokenizer_has_the_published_size_and_convolutions():
    count = parameter_count(TOKENIZERS["var-256"]) / 1e6
    assert count == pytest.approx(108.95, abs=0.01)
    assert shared_convs(10, 4) == (0, 0, 1, 1, 1, 2, 2, 3, 3, 3)


def test_unknown_presets_are_refused():
    with pytest.raises(ConfigError, match="choose one of var-d16"):
        preset("var-d17")
