"""Small language models of `transformers`, and what they compute."""

import transformers

SIZES = dict(
    vocab_size=60,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)


def llama_model(**changes):
    config = transformers.LlamaConfig(**{**SIZES, **changes})
    return transformers.LlamaForCausalLM(config)


def qwen2(**changes):
    config = transformers.Qwen2Config(**{**SIZES, **changes})
    return transformers.Qwen2ForCausalLM(config)


def qwen3(**changes):
    config = transformers.Qwen3Config(**{**SIZES, "head_dim": 12, **changes})
    return transformers.Qwen3ForCausalLM(config)


def chameleon(swin, **changes):
    names = {"<image>": 4, "IMGIMGAZ": 5, "IMGIMGBZ": 6}
    config = transformers.ChameleonConfig(
        **{**SIZES, **changes},
        swin_norm=swin,
        vocabulary_map=names,
        vq_config=dict(
            embed_dim=8,
            num_embeddings=32,
            latent_channels=8,
            resolution=32,
            base_channels=32,
            channel_multiplier=[1, 2],
            num_res_blocks=1,
        ),
    )
    return transformers.ChameleonForConditionalGeneration(config)


def emu3():
    text = transformers.Emu3TextConfig(
        **SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    names = {"<image>": 4, "<|extra_200|>": 5}
    names |= {f"<|visual token {i:06d}|>": 6 + i for i in range(32)}
    config = transformers.Emu3Config(
        text_config=text,
        vocabulary_map=names,
        vq_config=dict(
            codebook_size=32,
            embed_dim=4,
            latent_channels=4,
            base_channels=32,
            channel_multiplier=[1, 2],
            num_res_blocks=1,
            attn_resolutions=[1],
            hidden_size=64,
        ),
    )
    return transformers.Emu3ForConditionalGeneration(config)


def inner(model):
    """The decoder without the head, and the head."""
    decoder = model.model
    for name in ("language_model", "text_model"):
        decoder = getattr(decoder, name, decoder)
    return decoder, model.lm_head


def reference(model, tokens):
    """Scores and the outputs of all layers but the last, which is normed."""
    decoder, head = inner(model)
    out = decoder(input_ids=tokens, output_hidden_states=True, use_cache=False)
    return head(out.last_hidden_state), out.hidden_states[1:-1]
