# ruff: noqa: E402
"""Text-to-image generation with a converted LlamaGen, against PyTorch."""

import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from jaxspec.cli import main
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.captions import read_captions
from jaxspec.pipeline.config import GenerationConfig
from jaxspec.pipeline.decoding import decode_images
from jaxspec.pipeline.drafters import load_drafter
from jaxspec.pipeline.generation import generate
from jaxspec.pipeline.load import load
from jaxspec.pipeline.prompts import Prompts
from jaxspec.speculative.trees.tree import Tree
from tests.parity.eagle_twin import Eagle1
from tests.parity.llamagen_twin import CaptionCondition, LlamaGen, left_padded
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.parity

VOCAB, GRID, LENGTH, FEATURES, WIDTH = 64, 4, 7, 32, 32
PROMPTS = ["A red Apple", "seven small birds on the old gray wall"]
SCALE = 3.0


def text_encoder(folder):
    config = transformers.T5Config(
        vocab_size=40,
        d_model=FEATURES,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    model = randomized(transformers.T5EncoderModel(config), seed=1)
    model.save_pretrained(folder)
    words = " ".join(PROMPTS).lower().split()
    ids = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    made.save(str(folder / "tokenizer.json"))
    return model, made


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """All four parts, converted from files by the command line."""
    folder = tmp_path_factory.mktemp("t2i")
    decoder = LlamaGen(
        vocab=VOCAB,
        layers=2,
        width=WIDTH,
        heads=4,
        grid=GRID,
        condition=CaptionCondition(LENGTH, FEATURES, WIDTH),
    )
    decoder = randomized(decoder, seed=0)
    janus = transformers.JanusVQVAEConfig(
        embed_dim=8,
        num_embeddings=VOCAB,
        latent_channels=16,
        num_patches=GRID,
        base_channels=32,
        channel_multiplier=[1, 2],
        num_res_blocks=1,
    )
    pixels = randomized(transformers.JanusVQVAE(janus), seed=2)
    drafter = Eagle1(vocab=VOCAB, width=WIDTH, heads=4, kv_heads=4, hidden=48)
    torch.save({"model": decoder.state_dict()}, folder / "t2i.pt")
    torch.save({"model": pixels.state_dict()}, folder / "vq.pt")
    torch.save(randomized(drafter, seed=3).state_dict(), folder / "drafter.bin")
    encoder, words = text_encoder(folder / "t5")
    bundle, sets = folder / "bundle", ["--set", "heads=4", "--set", f"grid={GRID}"]
    for source, more in (
        ("t2i.pt", sets),
        ("vq.pt", []),
        ("drafter.bin", []),
        ("t5", ["--set", f"length={LENGTH}"]),
    ):
        assert main(["convert", str(folder / source), str(bundle), *more]) == 0
    return bundle, decoder, pixels, encoder, words


def original(released, prompts):
    """Greedy tokens and images of the PyTorch models, without a cache."""
    _, decoder, pixels, encoder, words = released
    ids = torch.zeros(len(prompts), LENGTH, dtype=torch.long)
    counts = []
    for row, text in enumerate(prompts):
        caption = words.encode(text.lower()).ids[:LENGTH]
        ids[row, : len(caption)] = torch.tensor(caption)
        counts.append(len(caption))
    valid = torch.arange(LENGTH) < torch.tensor(counts)[:, None]
    features = encoder(input_ids=ids, attention_mask=valid.long()).last_hidden_state
    features, real = left_padded(features, counts)
    prefix = decoder.cls_embedding(features)
    null = decoder.cls_embedding.null(len(prompts))
    tokens = torch.zeros(len(prompts), 0, dtype=torch.long)
    for _ in range(GRID**2):
        cond, uncond = (decoder(p, tokens, real)[:, -1] for p in (prefix, null))
        best = (uncond + SCALE * (cond - uncond)).argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, best], dim=1)
    return tokens, pixels.decode(tokens).permute(0, 2, 3, 1)


def captions_of(bundle, texts):
    return Prompts.from_captions(read_captions(bundle.text_encoder, texts))


def test_greedy_tokens_and_images_agree(released):
    bundle = load_bundle(released[0])
    tokens, images = original(released, PROMPTS)
    prompts = captions_of(bundle, PROMPTS)
    config = GenerationConfig(cfg_scale=SCALE, temperature=0.0)
    with jax.default_matmul_precision("highest"):
        result = generate(bundle, prompts, config, Tree.root())
        np.testing.assert_array_equal(result.tokens, tokens.numpy())
        actual = decode_images(bundle, result.tokens)
    reference = ((images.clamp(-1, 1) + 1) * 127.5).round().numpy()
    assert np.abs(actual.astype(float) - reference).max() <= 1
    assert len(np.unique(tokens)) > 4 and (tokens[0] != tokens[1]).any()


def test_the_converted_drafter_changes_no_token(released):
    bundle = load_bundle(released[0])
    prompts = captions_of(bundle, PROMPTS)
    config = GenerationConfig(cfg_scale=SCALE, batch_size=2)
    plain = generate(bundle, prompts, config, Tree.root())
    tree = Tree.named("0,1,00,01,000")
    fast = generate(bundle, prompts, config, tree, loaded=load_drafter("own", bundle))
    np.testing.assert_array_equal(fast.tokens, plain.tokens)
    assert fast.calls.sum() <= plain.calls.sum()


def test_the_command_line_generates_from_a_prompt(released, tmp_path, capsys):
    out, report = tmp_path / "a.png", tmp_path / "a.json"
    command = ["generate", "--checkpoint", str(released[0]), "--num", "2"]
    command += ["--out", str(out), "--report", str(report), "--tree", "0,1,00"]
    prompts = ["--prompt", PROMPTS[0], "--prompt", PROMPTS[1]]
    assert main([*command, *prompts, "--compare"]) == 0
    record = json.loads(report.read_text())
    assert out.is_file() and record["identical_to_autoregressive"]
    assert record["prompts"] == record["labels"] == PROMPTS
    capsys.readouterr()
    assert main(command) == 2
    assert "give --prompt" in capsys.readouterr().err
    assert (
        main(["generate", "--checkpoint", "fruits64", "--num", "1", "--prompt", "a"])
        == 2
    )
    assert "takes classes" in capsys.readouterr().err


def test_every_part_loads_on_its_own(released):
    bundle = released[0]
    model, params = load(bundle)
    assert type(model).__name__ == "Transformer"
    assert params["embedding"]["embedding"].shape == (VOCAB, WIDTH)
    kinds = {"tokenizer": "Tokenizer", "text_encoder": "TextEncoder"}
    for part, name in {**kinds, "drafter": "Eagle"}.items():
        assert type(load(bundle / part)[0]).__name__ == name
    _, half = load(bundle / "prior", dtype="bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(half)} == {"bfloat16"}


def test_unreadable_captions_are_refused(released, tmp_path):
    folder = released[0] / "text_encoder"
    with pytest.raises(ConfigError, match="prompt 1 is empty"):
        read_captions(folder, ["a", " "])
    with pytest.raises(CheckpointError, match="has no text_encoder/"):
        read_captions(None, ["a"])
    with pytest.raises(CheckpointError, match="has no text_encoder/"):
        read_captions(tmp_path / "gone", ["a"])


def test_truncated_captions_are_reported(released, tmp_path, capsys):
    """Nine tokens with the end token, of which the model reads seven."""
    file, folder = tmp_path / "captions.txt", tmp_path / "out"
    file.write_bytes(f"\ufeff{PROMPTS[0]}\r\n\r\n{PROMPTS[1]}\r\n".encode())
    command = ["generate", "--checkpoint", str(released[0]), "--drafter", "none"]
    many = ["--prompts", str(file), "--out-dir", str(folder)]
    words = "captions are cut, since the model reads 7 tokens: "
    assert main([*command, *many]) == 0
    assert f"1 of 2 {words}line 3 (9 tokens)\n" in capsys.readouterr().err
    report = json.loads((folder / "report.json").read_bytes())
    assert report["images"] == 2 and report["cut_captions"] == {"line 3": 9}
    assert (folder / "prompts.txt").read_text("utf-8").splitlines() == PROMPTS
    one = ["--num", "1", "--prompt", PROMPTS[1], "--out", str(tmp_path / "a.png")]
    assert main([*command, *one]) == 0
    assert f"1 of 1 {words}prompt 0 (9 tokens)\n" in capsys.readouterr().err
    assert main([*command, *one[:2], "--prompt", "a \udcff", *one[4:]]) == 2
    assert "prompt 0 is not UTF-8 text" in capsys.readouterr().err


def test_long_captions_are_truncated_before_the_end_token(released):
    """As in LlamaGen: truncated to the prefix length, with the end token."""
    captions = read_captions(released[0] / "text_encoder", [PROMPTS[1] + " a a a"])
    assert captions.features.valid.all()
