"""Export of checkpoints as safetensors, in the layout of a released family."""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.checkpoint import load_checkpoint, named_leaves
from jaxspec.convert.families import FAMILIES
from jaxspec.convert.family import ExportPlan
from jaxspec.convert.mapping import KeyRule
from jaxspec.convert.reading.safetensors import write_safetensors
from jaxspec.convert.transforms import TRANSFORMS
from jaxspec.errors import ConfigError, DataError
from jaxspec.io.writing import write_file

# Receives the number of bytes that were processed since the last call.
Progress = Callable[[int], object]
EXPORTS = tuple(name for name, family in FAMILIES.items() if family.export)


def export(
    checkpoint: str | os.PathLike,
    folder: str | os.PathLike,
    family: str,
    progress: Callable[[int], Progress] = lambda total: lambda count: None,
) -> Path:
    """Writes `model.safetensors` and `config.json`.

    Every tensor keeps its dtype and its bits; converting the folder back gives the
    same checkpoint.

    Args:
      checkpoint: folder of the checkpoint, a part of a bundle (`.../prior`).
      folder: folder of the result, created if it does not exist.
      family: one of `EXPORTS`.
      progress: function of the total size in bytes that returns a function of the
        number of bytes processed.

    Returns:
      The path of `model.safetensors`.

    Raises:
      ConfigError: the family has no export, cannot represent this model, or the folder
        holds a checkpoint of this library.
      CheckpointError: the checkpoint cannot be read.
      DataError: the folder cannot be written.
    """
    if family not in EXPORTS:
        raise ConfigError(
            f"family {family!r} cannot be exported; choose one of {', '.join(EXPORTS)}"
        )
    folder = Path(folder)
    if (folder / "params").exists():
        raise ConfigError(
            f"'{folder}' holds a checkpoint of jaxspec; export into another folder"
        )
    loaded = load_checkpoint(checkpoint)
    make_export_plan = FAMILIES[family].export
    assert make_export_plan is not None
    plan = make_export_plan(loaded)
    params = {k: v for k, v in named_leaves(loaded.params) if k not in plan.omitted}
    tensors = {
        name: (path, rule, span)
        for path in params
        for name, rule, span in _tensors_of(path, params, plan)
    }
    advance = progress(sum(x.nbytes for x in params.values()))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "model.safetensors"
        _write_tensors(file, params, tensors, plan, advance)
        text = json.dumps(plan.config, indent=2) + "\n"
        write_file(folder / "config.json", text.encode("utf-8"))
    except OSError as error:
        raise DataError(f"cannot write '{folder}': {error.strerror}") from None
    return file


def _write_tensors(
    file: Path,
    params: Mapping[str, Any],
    tensors: Mapping[str, tuple[str, KeyRule, slice]],
    plan: ExportPlan,
    advance: Progress,
) -> None:
    """Writes the tensors that parameters are split into.

    Args:
      file: safetensors file to write.
      params: parameters to export, by path.
      tensors: path, rule and slice of the parameter of each tensor, by name.
      plan: attention heads and extra tensors.
      advance: function that receives the size in bytes of each tensor.

    Raises:
      DataError: the file cannot be written.
    """

    def extract(name: str, param: np.ndarray) -> np.ndarray:
        """Returns the tensor that is a part of a parameter."""
        _, rule, span = tensors[name]
        x = param[(slice(None),) * (rule.axis % param.ndim) + (span,)]
        return TRANSFORMS[rule.transform].to_torch(x, plan.heads)

    def read(name: str) -> np.ndarray:
        if name in plan.extra_tensors:
            return plan.extra_tensors[name]
        x = extract(name, np.asarray(params[tensors[name][0]]))
        advance(x.nbytes)
        return x

    table = []
    for name, (path, *_) in tensors.items():
        # A dummy of the parameter's shape gives the tensor's shape.
        shape = extract(name, np.broadcast_to(np.int8(0), params[path].shape)).shape
        table.append((name, shape, params[path].dtype))
    table += [(name, x.shape, x.dtype) for name, x in plan.extra_tensors.items()]
    write_safetensors(file, table, read)


def _tensors_of(
    path: str, params: Mapping[str, Any], plan: ExportPlan
) -> list[tuple[str, KeyRule, slice]]:
    """Returns name, rule and slice of each tensor that a parameter is split into."""
    matches = [(rule, name) for rule in plan.rules if (name := rule.source_name(path))]
    matches.sort(key=lambda match: match[0].part)
    if not matches:
        raise ConfigError(f"the family has no tensor for the parameter {path}")
    if len(matches) == 1:
        return [(matches[0][1], matches[0][0], slice(None))]
    total = params[path].shape[matches[0][0].axis]
    sizes = [total // len(matches)] * len(matches)
    if "/qkv/" in path:  # several query heads for each key/value head
        sizes = [total - 2, 1, 1]
    ends = np.cumsum(sizes).tolist()
    spans = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return [(name, rule, s) for (rule, name), s in zip(matches, spans, strict=True)]
