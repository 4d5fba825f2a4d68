"""One sheet of images: what is generated, from which settings, and what is printed."""

import json

import pytest

import jaxspec
from jaxspec.checkpoint import load_checkpoint, read_config, save
from jaxspec.cli import main
from jaxspec.cli.main import build_parser
from jaxspec.cli.models import load_models
from jaxspec.errors import CheckpointError
from jaxspec.pipeline.bundle import load_bundle
from jaxspec.pipeline.report import labels_line
from jaxspec.pipeline.settings import resolve_config
from tests.tiny_bundle import save_bundle

PUBLISHED = {"cfg_scale": 3.0, "top_k": 5, "repetition_penalty": 1.2}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A tiny bundle without a drafter, whose prior has names and settings."""
    folder = save_bundle(tmp_path_factory.mktemp("tiny"))
    return record(folder, PUBLISHED)


def record(folder, generation):
    """Writes published settings into the prior of a bundle."""
    prior = load_checkpoint(folder / "prior")
    names = ["apple", "crane (bird)", "crane (machine)"]
    prior.metadata.update(class_names=names, generation=generation)
    save(folder / "prior", prior)
    return folder


def test_images_are_generated_once_and_named(bundle, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["generate", "--checkpoint", str(bundle), "--num", "3", "--top-k", "4"]
    command += ["--classes", "crane (bird),0", "--report", "r.json"]
    command += ["--tree", "chain-2"]
    assert main(command) == 0
    values = json.loads((tmp_path / "r.json").read_text())
    assert not any("baseline" in key or "identical" in key for key in values)
    assert values["labels"] == ["crane (bird)", "apple", "crane (bird)"]
    assert (values["cfg_scale"], values["top_k"]) == (3.0, 4)  # recorded, given
    assert values["tokens_per_call"] == values["tokens"] / values["target_calls"]
    out, err = capsys.readouterr()
    assert "shown       crane (bird), apple, repeated to 3" in out
    assert "speculative" in out and "plain" not in out and "identical" not in out
    note, *start = err[: err.index("\rgenerating")].splitlines()
    assert "has no drafter, so jacobi drafts" in note
    heads = [line.split()[0] for line in start]
    assert heads == ["device", "checkpoint", "images", "drafter"]
    assert "3 of 16 tokens, 8 at a time, temperature 1, cfg 3, top-k 4" in start[2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["r.json", "samples.png"]


def test_a_pipeline_without_a_trained_drafter_takes_an_untrained_one(bundle):
    assert jaxspec.load_pipeline(bundle).loaded.name == "jacobi"
    assert jaxspec.load_pipeline(bundle, drafter=None).loaded is None


def test_recorded_settings_are_the_default_of_every_caller(bundle):
    loaded = load_bundle(bundle)
    config = resolve_config(loaded, {"temperature": None, "top_k": None})
    assert (config.cfg_scale, config.top_k, config.temperature) == (3.0, 5, 1.0)
    assert resolve_config(loaded, {"cfg_scale": 1.5}).cfg_scale == 1.5
    loaded.prior.metadata.pop("generation")
    assert resolve_config(loaded, {}).cfg_scale == 2.0


@pytest.mark.parametrize(
    "wrong", [{"cfg_scale": "high"}, {"top_k": -1}, {"top_p": 2}, [3.0], "cfg"]
)
def test_impossible_recorded_settings_are_one_sentence(bundle, wrong):
    loaded = load_bundle(bundle)
    loaded.prior.metadata["generation"] = wrong
    with pytest.raises(CheckpointError, match="in prior/config.json cannot be used"):
        resolve_config(loaded, {})


def test_the_embedded_prior_records_its_scale():
    found = read_config(jaxspec.pipeline.embedded.embedded_folder() / "fruits64/prior")
    assert found.metadata["generation"] == {"cfg_scale": 2.0}


def test_unknown_classes_are_met_with_close_names(bundle, capsys):
    command = ["generate", "--checkpoint", str(bundle), "--classes", "crane"]
    assert main(command) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "unknown class 'crane'" in line
    assert "'crane (bird)', 'crane (machine)'" in line


@pytest.mark.parametrize(
    ("labels", "line"),
    [
        (["fox"], "fox"),
        (["fox"] * 16, "fox, repeated to 16"),
        (["fox", "owl", "fox"], "fox, owl, repeated to 3"),
        (["fox", "fox", "owl"], "fox, fox, owl"),
        ([str(i) for i in range(18)], ", ".join(map(str, range(16))) + " and 2 more"),
        (["a very " * 20], " ".join(["a very"] * 6) + " a ..."),
    ],
    ids=str,
)
def test_labels_are_in_the_order_of_the_grid_and_short(labels, line):
    assert labels_line(labels) == f"shown       {line}"


def test_many_labels_are_wrapped():
    lines = labels_line([f"Apple Golden {i}" for i in range(9)]).splitlines()
    assert len(lines) > 1 and max(map(len, lines)) < 80


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "fruits64_halton"),
        (["--prompt", "penguin, flat"], "emoji64"),
        (["--prompt", "penguin", "--classes", "0"], "fruits64_halton"),
        (["--prompt", "penguin", "--checkpoint", "fruits64"], "fruits64"),
    ],
)
def test_a_prompt_chooses_the_embedded_model_of_captions(words, name):
    arguments = build_parser().parse_args(["generate", "--drafter", "none", *words])
    assert load_models(arguments).bundle.name == name
