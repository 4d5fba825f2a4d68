"""Array annotations of the package, checked in calls that return.

`conftest.py` installs this as the type checker of jaxtyping's import hook. Checks come
after the call, so that the package's own errors for wrong arguments are what a test
sees; a call that returns although an argument or its result has another shape or dtype
than annotated fails. Of each function the first calls of a process are checked and then
every tenth, as checks of all take a fifth of the suite's time. NumPy arrays count as
arrays. Annotations without arrays are left to the static type checker.
"""

import inspect
import sys
from functools import wraps
from itertools import count
from types import UnionType
from typing import Any, Union, get_args, get_origin

import jax
import jaxtyping
import numpy as np
from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray

CONF = BeartypeConf(is_pep484_tower=True)
# Modules between a class's `__init__` and the code that calls it.
WRAPPERS = ("beartype", "dataclasses", "jaxtyping")
# Calls of a function that are checked at first, and one in this many later ones.
FIRST, EVERY = 20, 10


def mentions_array(annotation) -> bool:
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        return True
    return any(mentions_array(inner) for inner in get_args(annotation))


def with_numpy(annotation):
    """The same annotation of an array, or union of some, for NumPy arrays too."""
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        if annotation.array_type is jax.Array:
            return annotation.dtype[jax.Array | np.ndarray, annotation.dim_str]
    if isinstance(annotation, UnionType) or get_origin(annotation) is Union:
        return Union[tuple(map(with_numpy, get_args(annotation)))]  # noqa: UP007
    return annotation


def module_of(frame) -> str:
    return frame.f_globals.get("__name__", "")


def check_shapes(stub):
    """The stub of a call, made by jaxtyping, with the checks of its arrays.

    jaxtyping makes two stubs a function: of the arguments alone, called first, and of
    arguments and result, called last, which has one more argument, the result.
    """
    names = list(inspect.signature(stub).parameters)
    if not names or not names[-1].startswith("ret"):
        return stub
    annotations = {
        name: with_numpy(annotation) if mentions_array(annotation) else Any
        for name, annotation in stub.__annotations__.items()
    }
    if all(annotation is Any for annotation in annotations.values()):
        return stub
    stub.__annotations__ = annotations
    check = beartype(stub, conf=CONF)

    @wraps(stub)
    def check_fields(*args, **kwargs):
        """JAX rebuilds pytrees around anything; what the package traces counts."""
        frame = sys._getframe(1)
        while module_of(frame).split(".")[0] in WRAPPERS:
            frame = frame.f_back
        traced = any(isinstance(x, jax.core.Tracer) for x in (*args, *kwargs.values()))
        if traced and module_of(frame).startswith("jaxspec"):
            return check(*args, **kwargs)

    return check_fields if stub.__name__ == "__init__" else check


def sampled(function, checked):
    """The function, of whose calls some are checked."""
    calls = count()

    @wraps(function)
    def call(*args, **kwargs):
        index = next(calls)
        chosen = checked if index < FIRST or index % EVERY == 0 else function
        return chosen(*args, **kwargs)

    return call


def sample_checks():
    """Makes the decorator that jaxtyping's import hook inserts check some calls."""
    decorate = jaxtyping.jaxtyped

    def jaxtyped(*args, **kwargs):
        decorator = decorate(*args, **kwargs)

        def wrap(function):
            if not inspect.isfunction(function):
                return decorator(function)
            if not any(map(mentions_array, function.__annotations__.values())):
                return function
            return sampled(function, decorator(function))

        return decorator if args else wrap

    jaxtyping.jaxtyped = jaxtyped
