"""A model's config.json: what counts, what contradicts, what is asked for."""

import json

import numpy as np
import pytest

from jaxspec.checkpoint import save
from jaxspec.convert.export import export
from jaxspec.convert.reading.safetensors import read_safetensors
from jaxspec.convert.recorded import HARMLESS, NEUTRAL, Recorded, check_unread
from jaxspec.convert.run import prepare
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
    """Makes a folder of a family as others release it, with changes."""

    def make(family, *without, **changes):
        save(tmp_path / "b/prior", models.prior())
        save(tmp_path / "mine", MAKE[family]())
        out = tmp_path / "out"
        export(tmp_path / "mine", out, family)
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


def planned(folder, **given):
    [found] = prepare(folder, folder.parent / "b", given=given)
    return found.plan.config


# As `gpt_hf.py` writes it, and as LANTERN does.
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
    place = folder("llamagen")
    (place / "config.json").write_text(json.dumps(config))
    found = planned(place)
    assert (found.rope_base, found.norm_eps, found.grid) == (500.0, 0.01, 4)
    assert (found.heads, found.num_kv_heads) == (4, 2)
    [conversion] = prepare(place, place.parent / "b")
    assert conversion.unread == ()
    (place / "config.json").write_text(json.dumps({**HUB, **OTHER, "rope_theta": 400}))
    with pytest.raises(
        ConfigError, match="rope_theta=400 and rope_base=500, which mean"
    ):
        planned(place)


@pytest.mark.parametrize("family", MAKE)
def test_what_we_exported_and_somebody_changed_is_refused(folder, family):
    place = folder(family)
    export(place.parent / "mine", place, family)
    kept = json.loads((place / "config.json").read_text())
    planned(place)
    (place / "config.json").write_text(json.dumps({**kept, "rms_norm_eps": 0.5}))
    with pytest.raises(ConfigError, match="rms_norm_eps is 0.5, its entry 'jaxspec'"):
        planned(place)


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
CASES = [(f, {k: v}) for f, many in CONTRADICTIONS.items() for k, v in many.items()]


@pytest.mark.parametrize("family, change", CASES, ids=str)
def test_a_config_and_its_tensors_must_agree(folder, family, change):
    [(key, value)] = change.items()
    with pytest.raises(ConfigError, match=rf"is {value}, its (tensors|target) that"):
        planned(folder(family, **change))


@pytest.mark.parametrize("family", MAKE)
def test_what_is_not_used_is_named_and_never_silent(folder, family):
    place = folder(family, frobnicate=3, bos_token_id=1, use_cache=True, off=False)
    [found] = prepare(place, place.parent / "b")
    assert "frobnicate" in found.unread
    assert not {"bos_token_id", "use_cache", "off"} & set(found.unread)


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
    with pytest.raises(ConfigError, match=f"{next(iter(change))}=.*not known here"):
        planned(folder(family, **change))


def test_inner_parts_count_if_anything_in_them_was_asked_for():
    config = Recorded(
        {"text": {"a": 1, "b": 2, "scale_emb": 1}, "vision": {"c": 3}, "d": 4}
    )
    assert config["text"].get("a") == 1 and "d" in config
    assert check_unread(config, "x") == ("text.b", "d")
    config = Recorded({"text": {"a": 1, "scale_emb": 12}})
    assert config["text"].get("a") == 1
    with pytest.raises(ConfigError, match=r"text.scale_emb=12 in its config"):
        check_unread(config, "x")


def test_no_setting_is_both_harmless_and_not():
    assert not [key for key in NEUTRAL if HARMLESS.fullmatch(key)]


def test_the_layers_that_a_drafter_reads_are_not_guessed(folder):
    place = folder("dflash", dflash_config={})
    with pytest.raises(
        ConfigError, match=r"2 layers it reads.*--set feature_layers=N,N,\.\.\.$"
    ):
        planned(place)
    assert planned(place, feature_layers=(0, 1)).config.feature_layers == (0, 1)
    with pytest.raises(ConfigError, match="reads 64 features, but 1 layers"):
        planned(place, feature_layers=1)
    with pytest.raises(
        ConfigError, match="feature_layers='x' is no list of whole numbers"
    ):
        planned(place, feature_layers="x")


def test_layers_may_be_listed_in_either_part_of_the_config(folder):
    place = folder("dflash", dflash_config={}, target_layer_ids=[1, 0])
    assert planned(place).config.feature_layers == (1, 0)
    config = json.loads((place / "config.json").read_text())
    config["dflash_config"] = {"target_layer_ids": [0, 1], "block_size": 4}
    config["block_size"] = 9
    (place / "config.json").write_text(json.dumps(config))
    found = planned(place).config
    assert (found.feature_layers, found.block_size) == ((0, 1), 4)


def test_rows_that_see_only_earlier_ones_are_refused(folder):
    with pytest.raises(ConfigError, match="is_causal=True, which is not known"):
        planned(folder("dflash", is_causal=True))


def test_everything_that_is_missing_is_asked_for_at_once(folder):
    place = folder("dflash", "mask_rows", "block_size", dflash_config={})
    with pytest.raises(ConfigError) as error:
        planned(place)
    text = (
        "give them with --set feature_layers=N,N,... --set block_size=NUMBER --set "
        "mask_token="
    )
    assert text in str(error.value)
    found = planned(place, feature_layers=(0, 1), block_size=4, mask_token=7).config
    assert found.block_size == 4


def test_what_is_missing_comes_before_what_a_guess_breaks(tmp_path):
    """The heads are asked for, though one of them would not fit the tensors."""
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
    for plain, wanted in ((False, "none"), (True, "both")):
        config = {"codebook_l2_norm": plain, "codebook_size": 64, "z_channels": 32}
        (tmp_path / "config.json").write_text(json.dumps(config))
        [found] = prepare(tmp_path, tmp_path / "b", given={"image_size": 32})
        assert found.plan.config.normalized == wanted
    (tmp_path / "config.json").write_text(json.dumps({"codebook_size": 65}))
    with pytest.raises(ConfigError, match="num_embeddings is 65, its tensors"):
        prepare(tmp_path, tmp_path / "b", given={"image_size": 32})
