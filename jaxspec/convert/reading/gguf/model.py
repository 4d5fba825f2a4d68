"""GGUF files of decoders, with the names and order of the weights they were made from.

llama.cpp renames the tensors of Hugging Face's layout and, in the architecture "llama"
alone, reorders the channels of queries and keys, so that rotary pairs are neighbors.
Both are undone, so that a GGUF file is converted by the rules of the original.
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxspec.convert.reading.gguf.header import GgufTensor, damaged, read_header
from jaxspec.convert.reading.source import Stored, printable
from jaxspec.errors import ConfigError, DataError

ARCHITECTURES = ("llama", "qwen2", "qwen3")
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Factors of the rotary frequencies, which Llama 3's scaling changes.
ROPE_FACTORS = "rope_freqs.weight"


def read_gguf(file: Path) -> tuple[dict[str, Stored], dict[str, Any], dict[str, Any]]:
    """Lists the tensors of a decoder without reading their values.

    Returns:
      Tensors by their names in Hugging Face's layout; the entries of the `config.json`
      that belongs to them; and the metadata of the file.

    Raises:
      DataError: the file is damaged, one of several parts, or has an encoding that is
        not read.
      ConfigError: its architecture is not one of `ARCHITECTURES`, or has a feature that
        is not supported.
    """
    metadata, tensors = read_header(file)
    kind = metadata.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise ConfigError(
            f"'{file}' has the architecture {printable(str(kind))}; of GGUF files, "
            f"{', '.join(ARCHITECTURES)} are converted"
        )
    if metadata.get("split.count", 1) > 1:
        raise DataError(
            f"'{file}' is one of {metadata['split.count']} parts; join them with "
            "llama.cpp's gguf-split --merge"
        )
    config = _config(file, kind, metadata, tensors)
    heads = {
        "q": config["num_attention_heads"],
        "k": config["num_key_value_heads"],
    }
    stored = {}
    for name, tensor in tensors.items():
        if name == ROPE_FACTORS:
            _check_factors(file, tensor)
            continue
        new = _original_name(name)
        order = None
        if kind == "llama" and (match := re.search(r"self_attn\.([qk])_proj\.", new)):
            order = partial(_halves, heads=heads[match[1]])
        read = partial(_read, file, tensor, order)
        stored[new] = Stored(tensor.shape, tensor.kind.dtype, file, read)
    return stored, config, metadata


def _original_name(name: str) -> str:
    """Name in Hugging Face's layout; unknown names stay."""
    if match := re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name):
        layer, part, kind = match.groups()
        if part in LAYER_NAMES:
            return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"
    part, _, kind = name.rpartition(".")
    return f"{NAMES[part]}.{kind}" if part in NAMES else name


def _config(
    file: Path, kind: str, metadata: dict[str, Any], tensors: dict[str, GgufTensor]
) -> dict[str, Any]:
    """Entries of `config.json`, from the metadata of a file."""

    def entry(name: str, default: Any = None) -> Any:
        value = metadata.get(f"{kind}.{name}", default)
        if value is None:
            raise damaged(file, f"its metadata lack {kind}.{name}")
        return value

    heads, width = entry("attention.head_count"), entry("embedding_length")
    head_dim = metadata.get(f"{kind}.attention.key_length", width // heads)
    if metadata.get(f"{kind}.rope.dimension_count", head_dim) != head_dim:
        raise ConfigError(f"'{file}' rotates a part of each head; not supported")
    if metadata.get(f"{kind}.expert_count", 0):
        raise ConfigError(f"'{file}' is a mixture of experts; not supported")
    return {
        "model_type": kind,
        "hidden_size": width,
        "intermediate_size": entry("feed_forward_length"),
        "num_hidden_layers": entry("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": entry("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": entry("attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": entry("context_length"),
        "rope_theta": entry("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(kind, metadata),
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act": "silu",
    }


def _rope_scaling(kind: str, metadata: dict[str, Any]) -> dict[str, Any] | None:
    """Entry `rope_scaling`; `families.rotary` refuses kinds that are not supported."""
    prefix = f"{kind}.rope.scaling."
    scaling = metadata.get(prefix + "type", "none")
    if scaling == "none":
        return None
    fields = {"rope_type": scaling, "factor": metadata.get(prefix + "factor", 1.0)}
    if length := metadata.get(prefix + "original_context_length"):
        fields["original_max_position_embeddings"] = length
    return fields


def _check_factors(file: Path, tensor: GgufTensor) -> None:
    """Refuses rotary frequencies that are changed one by one."""
    if not (_read(file, tensor, None) == 1).all():
        raise ConfigError(
            f"'{file}' scales its rotary frequencies one by one ({ROPE_FACTORS}, as of "
            "Llama 3.1); convert the safetensors weights that it was made from"
        )


def _halves(x: np.ndarray, heads: int) -> np.ndarray:
    """Moves rotary pairs from neighboring outputs to half a head apart."""
    pairs = x.reshape(heads, -1, 2, *x.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(x.shape)


def _read(
    file: Path, tensor: GgufTensor, order: Callable[[np.ndarray], np.ndarray] | None
) -> np.ndarray:
    """Reads and decodes a tensor."""
    raw = np.fromfile(file, np.uint8, tensor.bytes, offset=tensor.offset)
    if raw.size != tensor.bytes:
        raise DataError(f"'{file}' was cut off while it was read; fetch it again")
    blocks = raw.reshape(-1, tensor.kind.bytes)
    values = tensor.kind.decode(blocks).reshape(tensor.shape)
    return order(values) if order else values
