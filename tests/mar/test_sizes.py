"""Numbers of parameters of the published models."""

import pytest

from jaxspec.checkpoint import parameter_count
from jaxspec.errors import ConfigError
from jaxspec.models.mar.presets import preset


@pytest.mark.parametrize(("name", "millions"), [("b", 208), ("l", 478), ("h", 942)])
def test_presets_have_the_published_sizes(name, millions):
    count = parameter_count(preset(f"mar-{name}")) / 1e6
    assert count == pytest.approx(millions, abs=0.5)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ConfigError, match="choose one of mar-b"):
        preset("mar-xl")
