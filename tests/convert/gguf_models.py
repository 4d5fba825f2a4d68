"""Random weights of a small decoder, in the layouts of its release and of GGUF."""

import json
from pathlib import Path

import numpy as np

from jaxspec.checkpoint import load_checkpoint
from jaxspec.convert.conversion import convert
from tests.convert import torch_files

WIDTH, HEADS, KV_HEADS, FFN, LAYERS, VOCAB = 16, 4, 2, 24, 2, 32
CONFIG = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 64,
    "rope_theta": 5000.0,
    "tie_word_embeddings": True,
}
SHAPES = {
    "input_layernorm.weight": ("attn_norm.weight", (WIDTH,)),
    "post_attention_layernorm.weight": ("ffn_norm.weight", (WIDTH,)),
    "self_attn.q_proj.weight": ("attn_q.weight", (WIDTH, WIDTH)),
    "self_attn.k_proj.weight": ("attn_k.weight", (WIDTH // 2, WIDTH)),
    "self_attn.v_proj.weight": ("attn_v.weight", (WIDTH // 2, WIDTH)),
    "self_attn.o_proj.weight": ("attn_output.weight", (WIDTH, WIDTH)),
    "mlp.gate_proj.weight": ("ffn_gate.weight", (FFN, WIDTH)),
    "mlp.up_proj.weight": ("ffn_up.weight", (FFN, WIDTH)),
    "mlp.down_proj.weight": ("ffn_down.weight", (WIDTH, FFN)),
}


def metadata(kind: str = "llama", **changes) -> dict:
    """Metadata of a file, as llama.cpp writes them."""
    entries = {
        "block_count": LAYERS,
        "context_length": 64,
        "embedding_length": WIDTH,
        "feed_forward_length": FFN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": KV_HEADS,
        "rope.freq_base": 5000.0,
        "rope.dimension_count": WIDTH // HEADS,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    entries = {f"{kind}.{name}": x for name, x in entries.items()}
    return {"general.architecture": kind, **entries, **changes}


def names(layer: int):
    """Pairs of names of a layer, in both layouts, with shapes."""
    for theirs, (ours, shape) in SHAPES.items():
        yield f"model.layers.{layer}.{theirs}", f"blk.{layer}.{ours}", shape


def weights(seed: int = 0) -> dict[str, tuple[str, np.ndarray]]:
    """Random weights by the original name, with the name in a GGUF file."""
    rng = np.random.default_rng(seed)
    shapes = {
        "model.embed_tokens.weight": ("token_embd.weight", (VOCAB, WIDTH)),
        "model.norm.weight": ("output_norm.weight", (WIDTH,)),
    }
    for layer in range(LAYERS):
        shapes |= {theirs: (ours, shape) for theirs, ours, shape in names(layer)}
    return {
        name: (ours, rng.standard_normal(shape).astype(np.float32))
        for name, (ours, shape) in shapes.items()
    }


def neighbors(name: str, x: np.ndarray) -> np.ndarray:
    """Order of channels in files of the architecture llama: pairs are neighbors."""
    heads = {"q": HEADS, "k": KV_HEADS}.get(name[name.find("_proj") - 1])
    if heads is None or "_proj" not in name or "self_attn" not in name:
        return x
    head = x.shape[0] // heads
    result = np.empty_like(x)
    for h in range(heads):
        for j in range(head // 2):
            result[h * head + 2 * j] = x[h * head + j]
            result[h * head + 2 * j + 1] = x[h * head + j + head // 2]
    return result


def params_of(source: Path, bundle: Path):
    convert(source, bundle)
    checkpoint = load_checkpoint(bundle / "prior")
    return checkpoint.config, checkpoint.params


def original(folder: Path, **changes):
    """Parameters of the weights that a GGUF file is made from."""
    folder.mkdir()
    state = {name: x for name, (_, x) in weights().items()}
    torch_files.write(folder / "model.safetensors", state)
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    return params_of(folder, folder / "bundle")
