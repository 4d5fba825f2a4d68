"""From PyTorch state dicts to this library's parameter trees."""

import re

import jax.numpy as jnp
import numpy as np


def _nested(flat: dict) -> dict:
    tree: dict = {}
    for path, value in flat.items():
        *above, last = path.split("/")
        node = tree
        for name in above:
            node = node.setdefault(name, {})
        node[last] = jnp.asarray(np.ascontiguousarray(value))
    return tree


def _leaf(path: str, x: np.ndarray) -> tuple[str, np.ndarray]:
    """Names and turns one tensor: convolutions to HWIO, matrices to (in, out)."""
    if path.endswith("/weight") and x.ndim == 4:
        return path.removesuffix("weight") + "kernel", x.transpose(2, 3, 1, 0)
    if path.endswith("/weight") and x.ndim == 2:
        return path.removesuffix("weight") + "kernel", x.T
    if path.endswith("/weight"):
        return path.removesuffix("weight") + "scale", x
    return path, x


def _arrays(state: dict) -> dict[str, np.ndarray]:
    return {key: x.detach().cpu().numpy() for key, x in state.items()}


def from_janus_keys(key: str) -> str:
    """Names a tensor of `transformers.JanusVQVAE` as LlamaGen's `VQModel` does."""
    key = re.sub(r"^(encoder)\.down\.|^(decoder)\.up\.", r"\1\2.conv_blocks.", key)
    key = re.sub(r"(conv_blocks\.\d+)\.block\.", r"\1.res.", key)
    for i, name in enumerate(("block_1", "attn_1", "block_2")):
        key = key.replace(f".mid.{name}.", f".mid.{i}.")
    return key


def tokenizer_params(state: dict) -> dict:
    """Parameters of `jaxspec`'s tokenizer from a `VQModel` state dict."""
    flat = {}
    for key, x in _arrays(state).items():
        if key == "quantize.embedding.weight":
            flat["codebook"] = x
        else:
            path = re.sub(r"(conv_blocks|res|attn)\.(\d+)", r"\1_\2", key)
            name, x = _leaf(path.replace(".", "/"), x)
            flat[name] = x
    return _nested(flat)


_DECODER_NAMES = {
    "cls_embedding.embedding_table.weight": "classes/embedding",
    "cls_embedding.uncond_embedding": "null_caption",
    "cls_embedding.cap_proj.fc1.weight": "caption_in/weight",
    "cls_embedding.cap_proj.fc2.weight": "caption_out/weight",
    "tok_embeddings.weight": "embedding/embedding",
    "output.weight": "head",
}


def decoder_params(state: dict) -> dict:
    """Parameters of `jaxspec`'s transformer from a LlamaGen decoder's state dict."""
    flat, arrays = {}, _arrays(state)
    for key, x in arrays.items():
        if key.endswith("feed_forward.w3.weight"):
            continue  # joined with w1
        if key.endswith("feed_forward.w1.weight"):
            x = np.concatenate([x, arrays[key.replace("w1", "w3")]])
        path = _DECODER_NAMES.get(key) or (
            re.sub(r"^layers\.(\d+)", r"layers_\1", key)
            .replace("feed_forward.w1", "ffn.gate_up")
            .replace("feed_forward.w2", "ffn.down")
            .replace("attention.wqkv", "attention.qkv")
            .replace("attention.wo", "attention.out")
            .replace(".", "/")
        )
        name, x = ("head", x.T) if path == "head" else _leaf(path, x)
        flat[name] = x
    return _nested(flat)


_DRAFTER_NAMES = {
    "fc": "project",
    "hidden_norm": "context_norm",
    "input_layernorm": "input_norm",
    "post_attention_layernorm": "post_norm",
    "q_proj": "query",
    "k_proj": "key",
    "v_proj": "value",
    "o_proj": "out",
    "down_proj": "down",
    "mlp": "ffn",
}


def drafter_params(state: dict, mask_rows) -> dict:
    """Parameters of the block drafter's own network from a DFlash state dict.

    Args:
      state: with DSpark's Markov head.
      mask_rows: `[G - 1, D]`, input rows of the masks; DFlash has one row for all.
    """
    arrays = _arrays(state)
    flat = {
        "mask_rows": np.asarray(mask_rows),
        "markov_in": arrays.pop("markov_head.markov_w1.weight"),
        "markov_out": arrays.pop("markov_head.markov_w2.weight").T,
    }
    for key, x in arrays.items():
        if "up_proj" in key:
            continue  # joined with the gate
        if "gate_proj" in key:
            x = np.concatenate([x, arrays[key.replace("gate", "up")]])
            key = key.replace("gate_proj", "gate_up")
        key = re.sub(r"^layers\.(\d+)", r"layers_\1", key).replace(".self_attn", "")
        path = "/".join(_DRAFTER_NAMES.get(name, name) for name in key.split("."))
        name, x = _leaf(path, x)
        flat[name] = x
    return _nested(flat)
