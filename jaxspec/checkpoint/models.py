"""Model checkpoints: a folder with `config.json` and `params/`.

A tokenizer's folder may also hold `neighbors.npz`, the nearest codebook entries of
each codebook entry.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.checkpoint.folders import recover, replace_folder, write_notes
from jaxspec.checkpoint.neighbors import NEIGHBORS, read_neighbors, write_neighbors
from jaxspec.checkpoint.pytrees import (
    Placement,
    abbreviated,
    named_leaves,
    open_part,
    part_folders,
    read_pytree,
    unflatten,
    write_parts,
    write_pytree,
)
from jaxspec.config import (
    KLTokenizerConfig,
    MARConfig,
    MultiScaleTokenizerConfig,
    NextScaleConfig,
    TextEncoderConfig,
    TokenizerConfig,
    TransformerConfig,
    from_dict,
    to_dict,
)
from jaxspec.config.flow import FlowTokenizerConfig
from jaxspec.config.one_d import MaskGITTokenizerConfig, OneDTokenizerConfig
from jaxspec.config.residual import ResidualTokenizerConfig
from jaxspec.drafters.registry import DRAFTERS
from jaxspec.errors import CheckpointError, ConfigError, NonFiniteError
from jaxspec.models.classifier.model import Classifier, ClassifierConfig
from jaxspec.models.mar.model import MAR
from jaxspec.models.matcher.model import Matcher, MatcherConfig
from jaxspec.models.next_scale.model import NextScale
from jaxspec.models.t5.model import TextEncoder
from jaxspec.models.transformer.model import Transformer
from jaxspec.speculative.verify.neighbors import Neighbors
from jaxspec.tokenizers.flow.model import FlowTokenizer
from jaxspec.tokenizers.kl.model import KLTokenizer
from jaxspec.tokenizers.maskgit.model import MaskGITTokenizer
from jaxspec.tokenizers.multi_scale.model import MultiScaleTokenizer
from jaxspec.tokenizers.one_d.model import OneDTokenizer
from jaxspec.tokenizers.residual.model import ResidualTokenizer
from jaxspec.tokenizers.vqgan.model import Tokenizer
from jaxspec.typing import Params

FORMAT = 4
# Size of one part of a model that is saved leaf by leaf.
PART_BYTES = 1 << 26
_MODELS = {
    "tokenizer": Tokenizer,
    "multi_scale_tokenizer": MultiScaleTokenizer,
    "kl_tokenizer": KLTokenizer,
    "maskgit_tokenizer": MaskGITTokenizer,
    "one_d_tokenizer": OneDTokenizer,
    "flow_tokenizer": FlowTokenizer,
    "residual_tokenizer": ResidualTokenizer,
    "prior": Transformer,
    "next_scale": NextScale,
    "mar": MAR,
    "classifier": Classifier,
    "matcher": Matcher,
    "text_encoder": TextEncoder,
}
KINDS = {
    "tokenizer": TokenizerConfig,
    "multi_scale_tokenizer": MultiScaleTokenizerConfig,
    "kl_tokenizer": KLTokenizerConfig,
    "maskgit_tokenizer": MaskGITTokenizerConfig,
    "one_d_tokenizer": OneDTokenizerConfig,
    "flow_tokenizer": FlowTokenizerConfig,
    "residual_tokenizer": ResidualTokenizerConfig,
    "prior": TransformerConfig,
    "next_scale": NextScaleConfig,
    "mar": MARConfig,
    "classifier": ClassifierConfig,
    "matcher": MatcherConfig,
    "text_encoder": TextEncoderConfig,
    **{name: kind.config for name, kind in DRAFTERS.items()},
}


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk or in memory.

    Attributes:
      kind: key of `KINDS`.
      config: frozen configuration of that kind.
      params: parameters, nested dict of arrays.
      metadata: everything else that is recorded: data, license, command, device, steps,
        metrics, class names, digest.
      neighbors: nearest codebook entries of a tokenizer, or None if not saved.
      target: configuration of the target of a drafter; None for other kinds.
    """

    kind: str
    config: Any
    params: Params
    metadata: dict[str, Any] = field(default_factory=dict)
    neighbors: Neighbors | None = None
    target: TransformerConfig | None = None

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        dtypes = ", ".join(sorted({str(x.dtype) for x in leaves}))
        words = f"{self.size / 1e6:.2f} M parameters, {dtypes}" if leaves else "unread"
        return f"Checkpoint({self.kind!r}, {words})"

    @property
    def size(self) -> int:
        """Number of parameters; 0 if they were not read."""
        return sum(x.size for x in jax.tree.leaves(self.params))

    @property
    def model(self) -> Any:
        """Static functions of the model: a `Transformer`, a `Tokenizer`, a drafter."""
        return make_model(self.kind, self.config, self.target)


def make_model(kind: str, config: Any, target: TransformerConfig | None = None) -> Any:
    """Makes the static functions of a model.

    Args:
      kind: key of `KINDS`.
      config: configuration of that kind.
      target: configuration of the target of a drafter.

    Raises:
      ConfigError: the configurations do not fit each other.
    """
    if kind in DRAFTERS:
        if target is None:
            raise ConfigError(f"a drafter of kind '{kind}' needs its target's config")
        return DRAFTERS[kind].drafter(config, target)
    return _MODELS[kind](config)


def model_of(config: Any) -> Any:
    """Static functions of a model that is no drafter, by its configuration."""
    kind = next(name for name, known in KINDS.items() if known is type(config))
    return _MODELS[kind](config)


def save(
    path: str | os.PathLike,
    checkpoint: Checkpoint,
    notes: dict[str, str] | None = None,
) -> None:
    """Writes a checkpoint folder, atomically replacing an existing one.

    A save that is killed leaves the old folder unchanged.

    Args:
      path: folder to write or replace.
      checkpoint: model to save; the digest of its parameters is added to the metadata.
      notes: text files to write beside the parameters, by name.

    Raises:
      CheckpointError: the folder cannot be written.
    """
    metadata = {**checkpoint.metadata, "digest": params_digest(checkpoint.params)}
    with replace_folder(Path(path)) as fresh:
        write_pytree(fresh / "params", checkpoint.params)
        _write_metadata(fresh, replace(checkpoint, metadata=metadata), notes)


def _write_metadata(
    folder: Path, checkpoint: Checkpoint, notes: dict[str, str] | None
) -> None:
    """Writes everything but the parameters."""
    from jaxspec import __version__

    record = {
        "format": FORMAT,
        "jaxspec": __version__,
        "kind": checkpoint.kind,
        "config": to_dict(checkpoint.config),
        "metadata": checkpoint.metadata,
    }
    if checkpoint.target is not None:
        record["target"] = to_dict(checkpoint.target)
    (folder / "config.json").write_text(
        json.dumps(record, indent=2) + "\n", encoding="utf-8"
    )
    if checkpoint.neighbors is not None:
        write_neighbors(folder / NEIGHBORS, checkpoint.neighbors)
    write_notes(folder, notes)


def save_leaves(
    path: str | os.PathLike,
    leaves: Iterable[tuple[str, np.ndarray | jax.Array]],
    finish: Callable[[], Checkpoint],
    notes: dict[str, str] | None = None,
    part_bytes: int = PART_BYTES,
) -> None:
    """Writes a checkpoint whose parameters do not fit into memory together.

    Args:
      path: folder to write; an existing one is replaced atomically.
      leaves: pairs of path and array. At most `part_bytes` of them, plus one leaf, are
        in memory at a time. A sharded array is stored in at least one chunk per shard,
        so that a device can read its shard alone.
      finish: function called after the last leaf; returns the checkpoint without its
        parameters.
      notes: text files to write beside the parameters, by name.
      part_bytes: largest number of bytes of one part, unless a single leaf is larger.

    Raises:
      CheckpointError: the folder cannot be written.
    """
    path = Path(path)
    with replace_folder(path) as fresh:
        write_parts(fresh / "params", leaves, part_bytes)
        _write_metadata(fresh, finish(), notes)


def read_config(path: str | os.PathLike) -> Checkpoint:
    """Reads `config.json` alone; `params` of the result is empty.

    Raises:
      CheckpointError: the folder or file is missing or unreadable, or has another
        format than this version of the library.
    """
    path = recover(path)
    file = path / "config.json"
    if not path.is_dir():
        raise CheckpointError(f"no checkpoint folder at '{path}'; check the path")
    try:
        record = json.loads(file.read_bytes())
        if record["format"] != FORMAT:
            raise CheckpointError(
                f"'{path}' has format {record['format']}; this jaxspec reads format "
                f"{FORMAT}: install a matching version"
            )
        kind = record["kind"]
        config, target = from_dict(KINDS[kind], record["config"]), None
        if kind in DRAFTERS:
            target = from_dict(TransformerConfig, record["target"])
            make_model(kind, config, target)  # raises if they do not fit
        metadata = dict(record.get("metadata", {}))
        return Checkpoint(kind, config, {}, metadata, target=target)
    except FileNotFoundError:
        raise CheckpointError(
            f"'{path}' has no config.json; it is not a jaxspec checkpoint"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise CheckpointError(
            f"'{file}' is damaged or not a jaxspec config ({error!r}); fetch it again"
        ) from None


def load_checkpoint(
    path: str | os.PathLike,
    kind: str | None = None,
    *,
    sharding: Placement = None,
    dtype: Any = None,
) -> Checkpoint:
    """Reads a checkpoint.

    Args:
      path: folder written by `save`.
      kind: required kind; None accepts any.
      sharding: sharding of all parameters, or a function from path and shape to one;
        None puts everything on the first local device.
      dtype: dtype of floating-point parameters; None keeps the saved one.

    Raises:
      CheckpointError: the checkpoint is missing, damaged, of another kind, or its
        parameters do not have the shapes of its configuration.
      NonFiniteError: a parameter holds NaN or infinity.
    """
    head = read_config(path)
    if kind is not None and head.kind != kind:
        raise CheckpointError(f"'{path}' holds a {head.kind}, not a {kind}")
    like = abstract_params(head.kind, head.config, head.target)
    params = read_pytree(Path(path) / "params", like, sharding, dtype)
    for name, x in named_leaves(params):
        if not bool(jnp.isfinite(x).all()):
            raise NonFiniteError(
                f"'{path}': parameter {name} holds NaN or infinity; "
                "the checkpoint is unusable, fetch or train it again"
            )
    neighbors = None
    if (Path(path) / NEIGHBORS).is_file():
        codebook_size = head.config.codebook_size
        neighbors = read_neighbors(Path(path) / NEIGHBORS, codebook_size)
    return replace(head, params=params, neighbors=neighbors)


def load_some(path: str | os.PathLike, names: Iterable[str]) -> Params:
    """Reads some parameters of a checkpoint; parts without any of them are skipped.

    Args:
      path: folder written by `save` or `save_leaves`.
      names: paths of parameters, such as "layers_0/kernel".

    Raises:
      CheckpointError: the checkpoint cannot be read, or lacks one of the parameters.
    """
    head, names = read_config(path), set(names)
    like = dict(named_leaves(abstract_params(head.kind, head.config, head.target)))
    folder, selected = Path(path) / "params", {}
    for part in part_folders(folder):
        stored = open_part(part)
        if names & set(stored):
            part_like = unflatten({name: like[name] for name in stored if name in like})
            leaves = named_leaves(read_pytree(part, part_like))
            selected |= {name: x for name, x in leaves if name in names}
    if missing := names - set(selected):
        raise CheckpointError(f"'{path}' has no {abbreviated(sorted(missing))}")
    return unflatten(selected)


def abstract_params(
    kind: str, config: Any, target: TransformerConfig | None = None
) -> Params:
    """Shapes and dtypes of a model's parameters; see `make_model`."""
    model = make_model(kind, config, target)
    init = model.init_params if kind in DRAFTERS else model.init
    return jax.eval_shape(init, jax.random.key(0))


def parameter_count(config: Any) -> int:
    """Number of parameters of a model that is no drafter, without allocating them."""
    shapes = jax.eval_shape(model_of(config).init, jax.random.key(0))
    return sum(x.size for x in jax.tree.leaves(shapes))


def digest_of(checkpoint: Checkpoint) -> str:
    """The digest recorded when a checkpoint was saved, or else that of its values.

    The recorded digest identifies the model even after its parameters were cast or
    sharded.
    """
    return checkpoint.metadata.get("digest") or params_digest(checkpoint.params)


def params_digest(params: Params) -> str:
    """A digest of parameter names and values: 16 hexadecimal digits of SHA-256."""
    digest = hashlib.sha256()
    for name, x in sorted(named_leaves(params)):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()[:16]
