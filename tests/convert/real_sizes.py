"""Random files with the names and shapes of LlamaGen-XL, VQ-16 and LANTERN's drafter.

`python -m tests.convert.real_sizes FOLDER` writes them (3.6 GB), not to be committed.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from tests.convert.llamagen_files import Tensor, decoder, tokenizer, write

WIDTH, FFN_WIDTH, LAYERS, VOCAB = 1280, 3584, 36, 16384


def drafter() -> Iterator[Tensor]:
    """Yields the tensors of jadohu/llamagen_drafter."""
    yield "embed_tokens.weight", (VOCAB, WIDTH)
    yield "fc.weight", (WIDTH, 2 * WIDTH)
    yield "fc.bias", (WIDTH,)
    for name in "qkvo":
        yield f"layers.0.self_attn.{name}_proj.weight", (WIDTH, WIDTH)
    yield "layers.0.mlp.gate_proj.weight", (FFN_WIDTH, WIDTH)
    yield "layers.0.mlp.up_proj.weight", (FFN_WIDTH, WIDTH)
    yield "layers.0.mlp.down_proj.weight", (WIDTH, FFN_WIDTH)
    yield "layers.0.post_attention_layernorm.weight", (WIDTH,)


FILES = {
    "t2i_XL_stage1_256.pt": lambda: decoder(WIDTH, FFN_WIDTH, LAYERS),
    "vq_ds16_t2i.pt": tokenizer,
    "drafter.bin": drafter,
}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, tensors in FILES.items():
        write(folder / name, tensors())
