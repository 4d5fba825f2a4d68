"""Lazy imports: public names of a package are imported at first use."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy_names(
    package: str, names: Mapping[str, str], modules: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Makes `__getattr__` and `__dir__` of a package.

    Args:
      package: name of the package.
      names: module that defines each public name.
      modules: module that each namespace refers to.
    """
    modules = modules or {}

    def get_attribute(name: str) -> Any:
        if name in modules:
            return importlib.import_module(modules[name])
        if name in names:
            return getattr(importlib.import_module(names[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules, *names})

    return get_attribute, list_names
