"""Removal of the prefixes that training wrappers add to tensor names.

`torch.compile`, FSDP and activation checkpointing add a component wherever they wrap a
module; data parallelism adds one before all names. These are always removed. A training
module (such as Lightning's) adds the name of the attribute that holds the model, often
"model", which released layouts use as well. `strip_leading_components` yields names
without it, and the caller tries which ones a family recognizes.
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


def strip_wrappers(tensors: Mapping[str, T]) -> tuple[dict[str, T], tuple[str, ...]]:
    """Removes the components that wrappers add to names.

    Args:
      tensors: tensors by name.

    Returns:
      Tensors by shortened name, and the components that were removed.

    Raises:
      ValueError: two tensors would have the same name.
    """
    removed: dict[str, None] = {}
    changed = True
    names = {name: name for name in tensors}
    while changed:  # wrappers can be nested
        before = dict(names)
        for name, short in before.items():
            for component in ANYWHERE.findall(short):
                removed[f"{component}."] = None
            names[name] = ANYWHERE.sub("", short)
        if names and all(short.startswith(AROUND) for short in names.values()):
            removed[AROUND] = None
            names = {name: s.removeprefix(AROUND) for name, s in names.items()}
        changed = names != before
    return _renamed(tensors, names), tuple(removed)


def strip_leading_components(
    tensors: Mapping[str, T], depth: int = 2
) -> Iterator[tuple[dict[str, T], str]]:
    """Removes each leading component of the names, the most frequent one first.

    Names that do not start with the component are unchanged.

    Args:
      tensors: tensors by name.
      depth: number of components that may be removed one after another.

    Yields:
      Tensors by shortened name, and the prefix that was removed.
    """
    firsts = Counter(name.split(".", 1)[0] for name in tensors if "." in name)
    for first, _ in firsts.most_common(8):
        prefix = f"{first}."
        try:
            shorter = _renamed(tensors, {n: n.removeprefix(prefix) for n in tensors})
        except ValueError:
            continue
        yield shorter, prefix
        if depth > 1:
            for shortest, inner in strip_leading_components(shorter, depth - 1):
                yield shortest, prefix + inner


def _renamed(tensors: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    renamed = {names[name]: tensor for name, tensor in tensors.items()}
    if len(renamed) != len(tensors):
        duplicate = Counter(names.values()).most_common(1)[0][0]
        raise ValueError(f"{duplicate} exists with and without a wrapper's prefix")
    return renamed
