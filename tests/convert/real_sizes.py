"""Random files with the names and shapes of LlamaGen-XL, VQ-16 and LANTERN's drafter.

`python -m tests.convert.real_sizes FOLDER` writes them (3.6 GB); nothing of this is
ever committed.
"""

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.convert import torch_files

WIDTH, HIDDEN, LAYERS, VOCAB = 1280, 3584, 36, 16384


def decoder() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Of t2i_XL_stage1_256.pt: 258 tensors."""
    yield "cls_embedding.uncond_embedding", (120, 2048)
    yield "cls_embedding.cap_proj.fc1.weight", (WIDTH, 2048)
    yield "cls_embedding.cap_proj.fc2.weight", (WIDTH, WIDTH)
    yield "tok_embeddings.weight", (VOCAB, WIDTH)
    for i in range(LAYERS):
        layer = f"layers.{i}."
        yield layer + "attention.wqkv.weight", (3 * WIDTH, WIDTH)
        yield layer + "attention.wo.weight", (WIDTH, WIDTH)
        yield layer + "feed_forward.w1.weight", (HIDDEN, WIDTH)
        yield layer + "feed_forward.w3.weight", (HIDDEN, WIDTH)
        yield layer + "feed_forward.w2.weight", (WIDTH, HIDDEN)
        yield layer + "attention_norm.weight", (WIDTH,)
        yield layer + "ffn_norm.weight", (WIDTH,)
    yield "norm.weight", (WIDTH,)
    yield "output.weight", (VOCAB, WIDTH)


def drafter() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Of jadohu/llamagen_drafter."""
    yield "embed_tokens.weight", (VOCAB, WIDTH)
    yield "fc.weight", (WIDTH, 2 * WIDTH)
    yield "fc.bias", (WIDTH,)
    for name in "qkvo":
        yield f"layers.0.self_attn.{name}_proj.weight", (WIDTH, WIDTH)
    yield "layers.0.mlp.gate_proj.weight", (HIDDEN, WIDTH)
    yield "layers.0.mlp.up_proj.weight", (HIDDEN, WIDTH)
    yield "layers.0.mlp.down_proj.weight", (WIDTH, HIDDEN)
    yield "layers.0.post_attention_layernorm.weight", (WIDTH,)


def tokenizer() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Of vq_ds16_t2i.pt: 344 tensors."""

    def both(name, *shape):
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]

    def block(name, reads, width):
        yield from both(f"{name}.norm1", reads)
        yield from both(f"{name}.conv1", width, reads, 3, 3)
        yield from both(f"{name}.norm2", width)
        yield from both(f"{name}.conv2", width, width, 3, 3)
        if reads != width:
            yield from both(f"{name}.nin_shortcut", width, reads, 1, 1)

    def attention(name, width):
        yield from both(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            yield from both(f"{name}.{part}", width, width, 1, 1)

    def half(name, widths, blocks, change, first, last):
        yield from both(f"{name}.conv_in", *first, 3, 3)
        here, top = first[0], max(widths)
        for i, width in enumerate(widths):
            level = f"{name}.conv_blocks.{i}"
            for j in range(blocks):
                yield from block(f"{level}.res.{j}", here, width)
                here = width
                if i == (4 if change == "downsample" else 0):
                    yield from attention(f"{level}.attn.{j}", width)
            if i < 4:
                yield from both(f"{level}.{change}.conv", width, width, 3, 3)
        for i in (0, 2):
            yield from block(f"{name}.mid.{i}", top, top)
        yield from attention(f"{name}.mid.1", top)
        yield from both(f"{name}.norm_out", here)
        yield from both(f"{name}.conv_out", last, here, 3, 3)

    up = [128, 128, 256, 256, 512]
    yield from half("encoder", up, 2, "downsample", (128, 3), 256)
    yield from half("decoder", up[::-1], 3, "upsample", (512, 256), 3)
    yield "quantize.embedding.weight", (VOCAB, 8)
    yield "quantize.codebook_used", (65536,)
    yield from both("quant_conv", 8, 256, 1, 1)
    yield from both("post_quant_conv", 256, 8, 1, 1)


FILES = {
    "t2i_XL_stage1_256.pt": decoder,
    "vq_ds16_t2i.pt": tokenizer,
    "drafter.bin": drafter,
}


def write(file: Path, tensors) -> None:
    """A file in PyTorch's format, one tensor in memory at a time."""
    rng, entries = np.random.default_rng(0), {}
    with zipfile.ZipFile(file, "w") as archive:
        for key, (name, shape) in enumerate(tensors):
            x = rng.standard_normal(shape, np.float32)
            norm = len(shape) == 1 and not name.endswith("bias")
            x = x * 0.02 + 1 if norm else x * np.float32(0.02)
            archive.writestr(f"archive/data/{key}", x.astype(np.float32).tobytes())
            entries[name] = torch_files.whole(str(key), x.astype(np.float32))
        body = torch_files.record({"model": torch_files.record(entries)})
        archive.writestr("archive/data.pkl", torch_files.program(body))
        archive.writestr("archive/byteorder", b"little")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in FILES.items():
        write(folder / name, tensors())
