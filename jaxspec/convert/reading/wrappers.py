"""What trainers' wrappers put into the names of tensors.

`torch.compile`, FSDP and activation checkpointing put a component of their own wherever
they wrap a module; data parallelism puts one before all names. They are removed always.
What a training module (Lightning's) puts before the names of the model it holds is any
word, often "model", which released layouts use as well: `peeled` offers names without
it, for the caller to try.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TypeVar

T = TypeVar("T")
ANYWHERE = re.compile(
    r"(?:^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|"
    r"_fpw_module|_forward_module)\."
)
AROUND = "module."


def unwrapped(tensors: Mapping[str, T]) -> tuple[dict[str, T], tuple[str, ...]]:
    """The same without wrappers' components, and which were there.

    Raises:
      ValueError: two tensors would have the same name.
    """
    removed: dict[str, None] = {}
    changed = True
    names = {name: name for name in tensors}
    while changed:  # a wrapper may lie within another
        before = dict(names)
        for name, short in before.items():
            for found in ANYWHERE.findall(short):
                removed[f"{found}."] = None
            names[name] = ANYWHERE.sub("", short)
        if names and all(short.startswith(AROUND) for short in names.values()):
            removed[AROUND] = None
            names = {name: s.removeprefix(AROUND) for name, s in names.items()}
        changed = names != before
    return _renamed(tensors, names), tuple(removed)


def peeled(
    tensors: Mapping[str, T], most: int = 2
) -> Iterator[tuple[dict[str, T], str]]:
    """The same without a first component, for each that there is; often-used first.

    Names that begin otherwise stay as they are.

    Args:
      tensors: by name.
      most: components that may be removed from a name, one after another.

    Yields:
      Tensors by name, and the prefix that was removed.
    """
    firsts = Counter(name.split(".", 1)[0] for name in tensors if "." in name)
    for first, _ in firsts.most_common(8):
        prefix = f"{first}."
        try:
            shorter = _renamed(tensors, {n: n.removeprefix(prefix) for n in tensors})
        except ValueError:
            continue
        yield shorter, prefix
        if most > 1:
            for shortest, inner in peeled(shorter, most - 1):
                yield shortest, prefix + inner


def _renamed(tensors: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    found = {names[name]: tensor for name, tensor in tensors.items()}
    if len(found) != len(tensors):
        twice = Counter(names.values()).most_common(1)[0][0]
        raise ValueError(f"{twice} is there with and without a wrapper's prefix")
    return found
