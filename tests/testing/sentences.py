"""Sentences of the error that a checker raises."""

import pytest

from jaxspec.errors import ConfigError


def sentences(check, *args, **kwargs):
    """Calls a checker, which must find a fault, and returns one sentence for each."""
    with pytest.raises(ConfigError) as error:
        check(*args, **kwargs)
    return str(error.value).split("\n- ")[1:]
