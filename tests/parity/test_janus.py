# ruff: noqa: E402
"""Janus as a generator of images from text."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.core.sampling import Sampling
from jaxspec.speculative.state import Variables

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jaxspec.convert.recognition import families_of
from jaxspec.core.noise import batch_keys
from jaxspec.models.transformer.model import Transformer
from jaxspec.models.transformer.prompts import TokenPrompt
from jaxspec.speculative.engine import Engine
from tests.parity.comparing import as_jax, assert_close
from tests.parity.converting import converted, source_of
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.parity
CODES, TEXT = 64, 60


def janus():
    config = transformers.JanusConfig(
        text_config=transformers.LlamaConfig(
            vocab_size=TEXT,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        ),
        vision_config=transformers.JanusVisionConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
            projection_dim=32,
            depth=2,
            num_image_tokens=64,
        ),
        vq_config=transformers.JanusVQVAEConfig(
            embed_dim=8,
            num_embeddings=CODES,
            latent_channels=32,
            num_patches=4,
            base_channels=32,
            channel_multiplier=[1, 2],
            num_res_blocks=1,
            projection_dim=32,
            num_hidden_layers=2,
            image_token_embed_dim=32,
        ),
        image_token_id=5,
    )
    return randomized(transformers.JanusForConditionalGeneration(config), seed=0)


RELEASED = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.generation_embeddings\.", "gen_embed."),
    (r"^model\.generation_aligner\.fc1\.", "gen_aligner.layers.0."),
    (r"^model\.generation_aligner\.hidden_layers\.0\.", "gen_aligner.layers.2."),
    (r"^model\.generation_head\.proj_out\.", "gen_head.output_mlp_projector."),
    (r"^model\.generation_head\.vision_head\.", "gen_head.vision_head."),
    (r"^model\.vqmodel\.(encoder)\.down\.", r"gen_vision_model.\1.conv_blocks."),
    (r"^model\.vqmodel\.(decoder)\.up\.", r"gen_vision_model.\1.conv_blocks."),
    (r"^model\.vqmodel\.", "gen_vision_model."),
    (r"(conv_blocks\.\d+)\.block\.", r"\1.res."),
    (r"\.mid\.block_1\.", ".mid.0."),
    (r"\.mid\.attn_1\.", ".mid.1."),
    (r"\.mid\.block_2\.", ".mid.2."),
    (r"^model\.(vision_model|aligner)\.", r"\1."),
)


def released(key):
    """The name of a tensor in the first release."""
    for pattern, name in RELEASED:
        key = re.sub(pattern, name, key)
    return key


@pytest.fixture(scope="module")
def model():
    return janus()


@pytest.mark.parametrize("first_release", [False, True])
def test_both_parts_are_found_and_image_tokens_get_the_same_logits(
    model, first_release
):
    state, config_json = model.state_dict(), model.config.to_dict()
    if first_release:
        state = {released(key): x for key, x in state.items()}
        config_json = {
            "language_config": config_json["text_config"],
            "model_type": "multi_modality",
        }
    names = [family.name for family in families_of(source_of(state, config_json))]
    assert names == (
        ["janus-original", "vq-llamagen"] if first_release else ["janus", "vq-janus"]
    )
    checkpoint = converted(state, names[0], config=config_json)
    tokenizer = converted(state, names[1], config=config_json, image_size=8)
    assert tokenizer.config.codebook_size == CODES == checkpoint.config.vocab_size

    torch.manual_seed(1)
    text, codes = torch.randint(TEXT, (2, 5)), torch.randint(CODES, (2, 7))
    inner = model.model
    read = inner.language_model.embed_tokens(text)
    generated = inner.generation_aligner(inner.generation_embeddings(codes))
    h = inner.language_model(inputs_embeds=torch.cat([read, generated], dim=1))
    reference = inner.generation_head(h.last_hidden_state)

    tokens = jnp.concatenate([as_jax(text) + CODES, as_jax(codes)], axis=1)
    actual, _ = Transformer(checkpoint.config).score(checkpoint.params, None, tokens)
    assert_close(actual, reference, atol=1e-4)


def test_guided_tokens_are_those_of_the_original_loop(model):
    """In the null branch all prompt tokens but the first and the last are padding."""
    state, config_json = model.state_dict(), model.config.to_dict()
    checkpoint = converted(state, "janus", config=config_json)
    inner, pad, scale, count = model.model, 3, 5.0, 6
    torch.manual_seed(2)
    prompts = torch.randint(4, TEXT, (2, 7))
    null = prompts.clone()
    null[:, 1:-1] = pad

    generated = torch.zeros(2, 0, dtype=torch.long)
    for _ in range(count):
        scores = []
        for text in (prompts, null):
            codes = inner.generation_aligner(inner.generation_embeddings(generated))
            embeds = torch.cat([inner.language_model.embed_tokens(text), codes], dim=1)
            h = inner.language_model(inputs_embeds=embeds).last_hidden_state
            scores.append(inner.generation_head(h[:, -1]))
        best = (scores[1] + scale * (scores[0] - scores[1])).argmax(-1, keepdim=True)
        generated = torch.cat([generated, best], dim=1)

    target = Transformer(checkpoint.config).as_target(cfg=True)
    prompt = TokenPrompt(as_jax(prompts) + CODES, as_jax(null) + CODES)
    sampling = Sampling.create(2, temperature=0.0, cfg_scale=scale)
    out = Engine(target, count).generate(
        Variables(checkpoint.params), prompt, sampling=sampling, keys=batch_keys(0, 2)
    )
    np.testing.assert_array_equal(np.asarray(out.tokens), generated.numpy())
    assert len(generated.unique()) > 3
