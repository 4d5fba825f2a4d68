"""Parameters that EAGLE's heads share with their target."""

from dataclasses import replace

import pytest

from jaxspec.drafters.eagle.drafter import Eagle
from jaxspec.errors import ConfigError
from tests.drafters.tiny import NARROW, TARGET

ALONE = {
    "no table of its own": {"own_embedding": False},
    "no head of its own": {"draft_vocab": 0},
    "version 1": {"version": 1, "draft_vocab": 0, "feature_layers": (2,)},
}


@pytest.mark.parametrize("case", ALONE)
def test_a_head_of_another_width_shares_no_table_with_its_target(case):
    assert Eagle(NARROW, TARGET).config.width < TARGET.width
    with pytest.raises(ConfigError, match="width 16 is not the target's 32"):
        Eagle(replace(NARROW, **ALONE[case]), TARGET)
