"""Conversion of LlamaGen-XL, VQ-16 and LANTERN's drafter at their real sizes.

Takes minutes and 10 GB of disk. Run with `pytest -m slow tests/convert`.
"""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from jaxspec.checkpoint.models import PART_BYTES
from tests.convert.llamagen_files import write
from tests.convert.real_sizes import FILES

MIB = 1 << 20
# Memory of the interpreter, jax, flax and tensorstore; measured 202 MiB.
PROGRAM = 260 * MIB


def run(code, *arguments):
    """Runs code in a new process; returns its output and peak memory in bytes."""
    # The result of getrusage would include the memory of the parent.
    tail = "print([w for w in open('/proc/self/status') if 'VmHWM' in w][0].split()[1])"
    found = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code) + tail, *map(str, arguments)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    *lines, peak = found.stdout.splitlines()
    return lines, int(peak) << 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    for name, tensors in FILES.items():
        write(folder / name, tensors())
    return folder


CONVERT = """
    import sys
    from jaxspec.cli import main
    assert main(["convert", *sys.argv[1:]]) == 0
"""
# LANTERN's published settings, for a few tokens.
GENERATE = """
    import json, sys
    import numpy as np
    from jaxspec.pipeline.bundle import load_bundle
    from jaxspec.pipeline.captions import Captions
    from jaxspec.pipeline.drafters import load_drafter
    from jaxspec.models.transformer.prompts import Caption
    from jaxspec.pipeline.config import GenerationConfig
    from jaxspec.pipeline.decoding import decode_images
    from jaxspec.pipeline.generation import generate
    from jaxspec.pipeline.prompts import Prompts
    from jaxspec.pipeline.verifiers import parse_verifier
    from jaxspec.speculative.trees.parsing import parse_tree
    bundle = load_bundle(sys.argv[1])
    rng = np.random.default_rng(0)
    features = rng.standard_normal((1, 120, 2048), np.float32)
    valid = np.arange(120)[None] >= 100
    caption = Captions(("a test",), Caption(features * valid[..., None], valid))
    settings = GenerationConfig(
        cfg_scale=3.0, top_k=2000, max_new_tokens=6, batch_size=1,
        verifier=parse_verifier("lantern:k=1000,delta=0.1"),
    )
    loaded, tree = load_drafter("own", bundle), parse_tree("naive_extend_57")
    prompts = Prompts.from_captions(caption)
    found = generate(bundle, prompts, settings, tree, loaded=loaded)
    tokens = np.resize(found.tokens, (1, 256))
    image = decode_images(bundle, tokens)
    print(json.dumps([found.tokens.tolist(), found.calls.tolist(), image.shape]))
"""


@pytest.mark.slow
def test_a_real_bundle_is_converted_and_generates_within_16_gib(folder):
    bundle = folder / "bundle"
    for name, tensors in FILES.items():
        _, peak = run(CONVERT, folder / name, bundle)
        largest = max(4 * int(np.prod(shape)) for _, shape in tensors())
        # A drafter's conversion reads its target's embedding.
        target = 2 * largest if name == "drafter.bin" else 0
        table = 6 * 1001 * 16384 * 2 if name.startswith("vq") else 0
        # A tensor before and after its transform; a part, its copy and its encoding.
        buffers = 6 * max(largest, PART_BYTES)
        assert peak <= PROGRAM + buffers + target + table, name
        print(f"{name}: {peak / MIB:.0f} MiB")
    lines, peak = run(GENERATE, bundle)
    tokens, calls, shape = json.loads(lines[-1])
    assert shape == [1, 256, 256, 3] and len(tokens[0]) == 6
    assert all(0 <= token < 16384 for token in tokens[0]) and 2 <= calls[0] <= 6
    print(f"generation: {peak / MIB:.0f} MiB, {calls[0]} calls for 6 tokens")
    assert peak < 16 << 30
