"""Entries of config.json: inference, contradictions, missing and unused settings."""

import json

import numpy as np
import pytest

from jaxspec.checkpoint import save
from jaxspec.convert.conversion import prepare
from jaxspec.convert.export import export
from jaxspec.convert.reading.safetensors import read_safetensors
from jaxspec.convert.source_config import HARMLESS, NEUTRAL, TrackedConfig, check_unread
from jaxspec.errors import ConfigError
from tests.convert import llamagen_files, models, torch_files

MAKE = {
    "llamagen": models.prior,
    "llamagen-hf": lambda: models.prior(models.CAPTIONS),
    "eagle1": lambda: models.feature_head(1),
    "eagle3": lambda: models.feature_head(3),
    "dflash": models.block_drafter,
}


@pytest.fixture
def folder(tmp_path):
    """Returns a function that exports a family and changes its config and tensors."""

    def make(family, *without, **changes):
        save(tmp_path / "b/prior", models.prior())
        save(tmp_path / "checkpoint", MAKE[family]())
        out = tmp_path / "out"
        export(tmp_path / "checkpoint", out, family)
        config = json.loads((out / "config.json").read_text())
        config = {**config, **changes}
        for name in ("jaxspec", *without):
            config.pop(name, None)
        (out / "config.json").write_text(json.dumps(config))
        tensors = read_safetensors(out / "model.safetensors")
        state = {n: x.read() for n, x in tensors.items() if n not in without}
        torch_files.write(out / "model.safetensors", state)
        return out

    return make


def planned(folder, **settings):
    """Returns the configuration that a conversion would have."""
    [conversion] = prepare(folder, folder.parent / "b", given=settings)
    return conversion.plan.config


# Configs of one model, as written by `gpt_hf.py` and by LANTERN.
HUB = {
    "dim": 32, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "rope_base": 500,
    "norm_eps": 0.01, "multiple_of": 16, "ffn_dim_multiplier": None, "vocab_size": 40,
    "block_size": 16, "num_classes": 5, "cls_token_num": 1, "model_type": "c2i",
    "caption_dim": 2048, "class_dropout_prob": 0.1, "max_seq_len": 2048,
}  # fmt: skip
OTHER = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "rope_theta": 500.0, "rms_norm_eps": 0.01,
    "vocab_size": 40, "block_size": 16, "intermediate_size": 48,
}  # fmt: skip


@pytest.mark.parametrize("config", [HUB, OTHER], ids=["gpt_hf", "LANTERN"])
def test_llamagen_is_read_under_both_names_of_its_settings(folder, config):
    exported = folder("llamagen")
    (exported / "config.json").write_text(json.dumps(config))
    result = planned(exported)
    assert (result.rope_base, result.norm_eps, result.grid) == (500.0, 0.01, 4)
    assert (result.heads, result.num_kv_heads) == (4, 2)
    [conversion] = prepare(exported, exported.parent / "b")
    assert conversion.unused_config == ()
    (exported / "config.json").write_text(
        json.dumps({**HUB, **OTHER, "rope_theta": 400})
    )
    with pytest.raises(
        ConfigError, match="rope_theta=400 and rope_base=500, which mean"
    ):
        planned(exported)


@pytest.mark.variants(2)
@pytest.mark.parametrize("family", MAKE)
def test_an_exported_config_that_was_changed_is_refused(folder, family):
    exported = folder(family)
    export(exported.parent / "checkpoint", exported, family)
    record = json.loads((exported / "config.json").read_text())
    planned(exported)
    (exported / "config.json").write_text(json.dumps({**record, "rms_norm_eps": 0.5}))
    with pytest.raises(
        ConfigError, match="rms_norm_eps is 0.5 in config.json.* 'jaxspec'"
    ):
        planned(exported)


CONTRADICTIONS = {
    "llamagen": {
        "vocab_size": 41, "num_classes": 6, "num_key_value_heads": 4,
        "cls_token_num": 2, "num_hidden_layers": 1,
    },
    "llamagen-hf": {"hidden_size": 64, "caption_dim": 11, "cls_token_num": 120},
    "eagle1": {"hidden_size": 64, "vocab_size": 41, "num_key_value_heads": 4},
    "eagle3": {
        "intermediate_size": 50, "vocab_size": 41, "head_dim": 16,
        "target_hidden_size": 64,
    },
    "dflash": {
        "num_target_layers": 3, "vocab_size": 41, "hidden_size": 64, "head_dim": 16,
        "num_key_value_heads": 2, "intermediate_size": 50, "num_hidden_layers": 1,
    },
}  # fmt: skip
CASES = [
    (f, {k: v}) for f, changes in CONTRADICTIONS.items() for k, v in changes.items()
]


@pytest.mark.variants(5)
@pytest.mark.parametrize("family, change", CASES, ids=str)
def test_a_config_and_its_tensors_must_agree(folder, family, change):
    [(key, value)] = change.items()
    with pytest.raises(
        ConfigError, match=rf"is {value} in config.json, but .* in its t"
    ):
        planned(folder(family, **change))


@pytest.mark.parametrize("family", MAKE)
def test_unused_entries_are_listed(folder, family):
    exported = folder(family, frobnicate=3, bos_token_id=1, use_cache=True, off=False)
    [conversion] = prepare(exported, exported.parent / "b")
    assert "frobnicate" in conversion.unused_config
    harmless = {"bos_token_id", "use_cache", "off"}
    assert not harmless & set(conversion.unused_config)


@pytest.mark.parametrize("family", MAKE)
@pytest.mark.parametrize(
    "change",
    [
        {"final_logit_softcapping": 20.0},
        {"output_multiplier": 0.2},
        {"partial_rotary_factor": 0.5},
        {"hidden_act": "gelu"},
    ],
    ids=str,
)
def test_what_changes_the_numbers_in_an_unknown_way_is_refused(folder, family, change):
    with pytest.raises(ConfigError, match=f"{next(iter(change))}=.*not supported"):
        planned(folder(family, **change))


def test_entries_of_a_section_count_if_the_section_was_read():
    config = TrackedConfig(
        {"text": {"a": 1, "b": 2, "scale_emb": 1}, "vision": {"c": 3}, "d": 4}
    )
    assert config["text"].get("a") == 1 and "d" in config
    assert check_unread(config, "x") == ("text.b", "d")
    config = TrackedConfig({"text": {"a": 1, "scale_emb": 12}})
    assert config["text"].get("a") == 1
    with pytest.raises(ConfigError, match=r"text.scale_emb=12 in its config"):
        check_unread(config, "x")


def test_no_entry_is_harmless_and_neutral():
    assert not [key for key in NEUTRAL if HARMLESS.fullmatch(key)]


def test_the_layers_that_a_drafter_reads_are_not_guessed(folder):
    exported = folder("dflash", dflash_config={})
    with pytest.raises(
        ConfigError, match=r"2 layers; .*--set feature_layers=N,N,\.\.\.$"
    ):
        planned(exported)
    assert planned(exported, feature_layers=(0, 1)).feature_layers == (0, 1)
    with pytest.raises(ConfigError, match="reads 64 features, but 1 layers"):
        planned(exported, feature_layers=1)
    with pytest.raises(
        ConfigError, match="feature_layers='x' is no list of whole numbers"
    ):
        planned(exported, feature_layers="x")


def test_layers_may_be_listed_in_either_section_of_the_config(folder):
    exported = folder("dflash", dflash_config={}, target_layer_ids=[1, 0])
    assert planned(exported).feature_layers == (1, 0)
    config = json.loads((exported / "config.json").read_text())
    config["dflash_config"] = {"target_layer_ids": [0, 1], "block_size": 4}
    config["block_size"] = 9
    (exported / "config.json").write_text(json.dumps(config))
    result = planned(exported)
    assert (result.feature_layers, result.block_size) == ((0, 1), 4)


def test_causal_blocks_are_refused(folder):
    with pytest.raises(ConfigError, match="is_causal=True, which is not supported"):
        planned(folder("dflash", is_causal=True))


def test_one_error_lists_all_missing_settings(folder):
    exported = folder("dflash", "mask_rows", "block_size", dflash_config={})
    with pytest.raises(ConfigError) as error:
        planned(exported)
    text = "add --set feature_layers=N,N,... --set block_size=NUMBER --set mask_token="
    assert text in str(error.value)
    result = planned(exported, feature_layers=(0, 1), block_size=4, mask_token=7)
    assert result.block_size == 4


def test_missing_settings_are_reported_before_errors_of_placeholders(tmp_path):
    """The number of heads is missing, and its placeholder would not fit."""
    state = models.released(tmp_path / "model")
    torch_files.write(tmp_path / "m.safetensors", state)
    config = {"num_key_value_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="number of heads.*--set heads=NUMBER"):
        prepare(tmp_path / "m.safetensors", tmp_path / "b")


def test_a_tokenizer_whose_codes_are_not_normalized(tmp_path):
    tensors = llamagen_files.tokenizer(channels=32, latent=32, codes=64, used=8)
    state = {name: np.zeros(shape, np.float32) for name, shape in tensors}
    torch_files.write(tmp_path / "m.safetensors", state)
    for l2_norm, normalized in ((False, "none"), (True, "both")):
        config = {"codebook_l2_norm": l2_norm, "codebook_size": 64, "z_channels": 32}
        (tmp_path / "config.json").write_text(json.dumps(config))
        [conversion] = prepare(tmp_path, tmp_path / "b", given={"image_size": 32})
        assert conversion.plan.config.normalized == normalized
    (tmp_path / "config.json").write_text(json.dumps({"codebook_size": 65}))
    with pytest.raises(ConfigError, match="num_embeddings is 65 in config.json"):
        prepare(tmp_path, tmp_path / "b", given={"image_size": 32})
