"""Random files with the tensor names of LlamaGen's releases, at any size."""

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tests.convert import torch_files

Tensor = tuple[str, tuple[int, ...]]


def decoder(
    width: int, ffn_width: int, layers: int, vocab: int = 16384, classes: int = 0
) -> Iterator[Tensor]:
    """Yields the tensors of c2i_B_256.pt (88), or of t2i_XL_stage1_256.pt (258).

    The latter if there are no classes.
    """
    if classes:
        yield "cls_embedding.embedding_table.weight", (classes + 1, width)
    else:
        yield "cls_embedding.uncond_embedding", (120, 2048)
        yield "cls_embedding.cap_proj.fc1.weight", (width, 2048)
        yield "cls_embedding.cap_proj.fc2.weight", (width, width)
    yield "tok_embeddings.weight", (vocab, width)
    for i in range(layers):
        layer = f"layers.{i}."
        yield layer + "attention.wqkv.weight", (3 * width, width)
        yield layer + "attention.wo.weight", (width, width)
        yield layer + "feed_forward.w1.weight", (ffn_width, width)
        yield layer + "feed_forward.w3.weight", (ffn_width, width)
        yield layer + "feed_forward.w2.weight", (width, ffn_width)
        yield layer + "attention_norm.weight", (width,)
        yield layer + "ffn_norm.weight", (width,)
    yield "norm.weight", (width,)
    yield "output.weight", (vocab, width)


def tokenizer(
    channels: int = 128, latent: int = 256, codes: int = 16384, used: int = 65536
) -> Iterator[Tensor]:
    """Yields the 344 tensors of vq_ds16_c2i.pt and vq_ds16_t2i.pt."""

    def layer(name, *shape):
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]

    def block(name, width_in, width):
        yield from layer(f"{name}.norm1", width_in)
        yield from layer(f"{name}.conv1", width, width_in, 3, 3)
        yield from layer(f"{name}.norm2", width)
        yield from layer(f"{name}.conv2", width, width, 3, 3)
        if width_in != width:
            yield from layer(f"{name}.nin_shortcut", width, width_in, 1, 1)

    def attention(name, width):
        yield from layer(f"{name}.norm", width)
        for part in ("q", "k", "v", "proj_out"):
            yield from layer(f"{name}.{part}", width, width, 1, 1)

    def half(name, widths, blocks, resample, first, last):
        yield from layer(f"{name}.conv_in", *first, 3, 3)
        channels_in, top = first[0], max(widths)
        for i, width in enumerate(widths):
            level = f"{name}.conv_blocks.{i}"
            for j in range(blocks):
                yield from block(f"{level}.res.{j}", channels_in, width)
                channels_in = width
                if i == (4 if resample == "downsample" else 0):
                    yield from attention(f"{level}.attn.{j}", width)
            if i < 4:
                yield from layer(f"{level}.{resample}.conv", width, width, 3, 3)
        for i in (0, 2):
            yield from block(f"{name}.mid.{i}", top, top)
        yield from attention(f"{name}.mid.1", top)
        yield from layer(f"{name}.norm_out", channels_in)
        yield from layer(f"{name}.conv_out", last, channels_in, 3, 3)

    up = [channels * times for times in (1, 1, 2, 2, 4)]
    yield from half("encoder", up, 2, "downsample", (channels, 3), latent)
    yield from half("decoder", up[::-1], 3, "upsample", (4 * channels, latent), 3)
    yield "quantize.embedding.weight", (codes, 8)
    yield "quantize.codebook_used", (used,)
    yield from layer("quant_conv", 8, latent, 1, 1)
    yield from layer("post_quant_conv", latent, 8, 1, 1)


def write(file: Path, tensors: Iterator[Tensor]) -> None:
    """Writes a file in PyTorch's format with one tensor in memory at a time."""
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
