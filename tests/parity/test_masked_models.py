# ruff: noqa: E402
"""LLaDA and Dream: bidirectional decoders, converted as masked-diffusion models.

Their code is not on a package registry. The layers are Llama's and Qwen2's, without
causality: the reference is `transformers` with a mask that hides nothing.
"""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from jaxspec.models.masked_lm.model import MaskedDiffusion
from jaxspec.models.transformer.model import Transformer
from tests.parity.comparing import as_jax, assert_close
from tests.parity.converting import converted
from tests.parity.language_models import llama_model, qwen2
from tests.parity.random_weights import randomized

pytestmark = pytest.mark.parity
MASK = 57
LLADA = {
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.down_proj": "ff_out",
    "mlp.up_proj": "up_proj",
    "self_attn.": "",
    "post_attention_layernorm": "ff_norm",
    "input_layernorm": "attn_norm",
    "model.layers.": "model.transformer.blocks.",
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
}


def llada():
    model = randomized(llama_model(rms_norm_eps=1e-5), seed=0)
    state = {}
    for key, x in model.state_dict().items():
        for reference, name in LLADA.items():
            key = key.replace(reference, name)
        state[key] = x
    config_json = {"n_heads": 4, "n_kv_heads": 2, "n_layers": 3, "mask_token_id": MASK}
    return model, converted(state, config=config_json)


def dream():
    model = randomized(qwen2(), seed=0)
    config_json = {
        **model.config.to_dict(),
        "model_type": "Dream",
        "mask_token_id": MASK,
    }
    return model, converted(model.state_dict(), config=config_json)


@pytest.fixture(scope="module", params=[llada, dream], ids=["LLaDA", "Dream"])
def both(request):
    model, checkpoint = request.param()
    masked_model = MaskedDiffusion(
        Transformer(checkpoint.config), checkpoint.metadata["shifted"]
    )
    return masked_model, checkpoint.params, model


def reference(model, tokens, shifted):
    everything = torch.zeros(len(tokens), 1, tokens.shape[1], tokens.shape[1])
    logits = model(input_ids=tokens, attention_mask=everything).logits
    return torch.cat([logits[:, :1], logits[:, :-1]], dim=1) if shifted else logits


def some_tokens(rows, length):
    torch.manual_seed(1)
    tokens = torch.randint(MASK, (rows, length))
    return torch.where(torch.rand(rows, length) < 0.4, MASK, tokens)


def with_mask_token(masked_model, tokens):
    return jnp.where(as_jax(tokens) == MASK, masked_model.mask_token, as_jax(tokens))


def test_logits_of_every_position_agree(both):
    masked_model, params, model = both
    assert masked_model.shifted == ("qwen2" in model.config.model_type)
    tokens = some_tokens(2, 11)
    logits = masked_model.score(params, None, with_mask_token(masked_model, tokens))
    assert_close(logits, reference(model, tokens, masked_model.shifted), atol=1e-4)


def test_prompts_of_different_lengths(both):
    masked_model, params, model = both
    tokens, prompts = some_tokens(2, 6), [[3, 4, 5, 6], [7, 8]]
    padded = jnp.array([p + [-1] * (4 - len(p)) for p in prompts])
    logits = masked_model.score(params, padded, with_mask_token(masked_model, tokens))
    for row, prompt in enumerate(prompts):
        sequence = torch.cat([torch.tensor([prompt]), tokens[row : row + 1]], dim=1)
        expected = reference(model, sequence, masked_model.shifted)[0, len(prompt) :]
        assert_close(logits[row], expected, atol=1e-4)


def test_a_causal_mask_is_detected(both):
    """Control: the same weights as an autoregressive model."""
    masked_model, params, model = both
    tokens = some_tokens(2, 11)
    logits = np.asarray(
        masked_model.score(params, None, with_mask_token(masked_model, tokens))
    )
    causal = model(input_ids=tokens).logits.numpy()
    assert np.abs(logits - causal)[:, :-2].max() > 0.1
