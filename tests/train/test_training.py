"""Training from the command line: checkpoints, resuming, presets."""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import load_checkpoint, load_state, save, save_state
from jaxspec.cli import main
from jaxspec.config import KLTokenizerConfig
from jaxspec.config.token_kinds import same_tokens
from jaxspec.errors import CheckpointError, ConfigError
from jaxspec.pipeline.bundle import load_bundle, load_prior
from jaxspec.pipeline.embedded import CLASSES, embedded_folder
from jaxspec.train.experiment import load_experiment, with_steps
from jaxspec.train.settings import PriorTrainingConfig
from tests.data.packed import write_packed
from tests.train.commands import DYING, TINY, train

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_packed(folder / "cifar10_jpeg.npz", 32)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data):
    """Working folder in which all three parts were trained."""
    workdir = tmp_path_factory.mktemp("run")
    for part in ("tokenizer", "prior", "drafter"):
        assert main(train(part, workdir, data)) == 0
    return workdir


def losses(workdir, part):
    lines = (workdir / part / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_prior_of_another_tokenizer_brings_it_along(trained, data, tmp_path):
    """The working folder generates by itself."""
    options = ["--checkpoint", str(trained), "--steps", "1"]
    assert main(train("prior", tmp_path / "run", data, *options)) == 0
    mine, copied = (
        load_checkpoint(folder / "checkpoint" / "tokenizer")
        for folder in (trained, tmp_path / "run")
    )
    jax.tree.map(np.testing.assert_array_equal, copied.params, mine.params)
    configs = [load_bundle(f).prior.config for f in (trained, tmp_path / "run")]
    assert configs[0] == configs[1]


@pytest.mark.parametrize("part", ["tokenizer", "prior", "drafter"])
def test_every_part_learns_and_writes_a_loadable_checkpoint(trained, part):
    values = [line["loss"] for line in losses(trained, part) if "loss" in line]
    assert len(values) == 12 and values[-1] < values[0]
    bundle = load_bundle(trained / "checkpoint")
    metadata = getattr(bundle, part).metadata
    assert metadata["license"] == "CC0" and metadata["metrics"]["step"] in (4, 8, 12)
    card = (trained / "checkpoint" / part / "README.md").read_text()
    for words in ("made on the spot", "CC0", f"jaxspec train {part}", "cpu", "step"):
        assert words in card
    assert bundle.class_names == ["red", "green", "blue"]


def test_a_trained_bundle_generates(trained, tmp_path, capsys):
    out, report = tmp_path / "s.png", tmp_path / "r.json"
    command = ["generate", "--checkpoint", str(trained / "checkpoint"), "--num", "3"]
    command += ["--tree", "chain-3", "--out", str(out), "--report", str(report)]
    command += ["--compare"]
    assert main([*command, "--classes", "blue,0"]) == 0
    values = json.loads(report.read_text())
    assert values["identical_to_autoregressive"] and values["classes"] == [2, 0, 2]
    assert values["tokens"] == 3 * 16
    assert out.read_bytes()[:4] == b"\x89PNG"
    assert "identical   yes" in capsys.readouterr().out


MODEL = """
from dataclasses import replace
from jaxspec.train.experiment import load_experiment
from jaxspec.train.settings import PriorTrainingConfig


def get_config():
    tiny = load_experiment({tiny!r})
    short = {{"warmup": 1, "log_every": 1, "evaluate_every": 2, "save_every": 2}}
    prior = replace(tiny.prior, extra_tokens={extra})
    training = PriorTrainingConfig(
        steps=2, batch=4, objective={objective!r}, exits={exits}, block=3, **short
    )
    return replace(tiny, prior=prior, train_prior=training)
"""
SLOW = pytest.mark.slow
OBJECTIVES = [
    "tidar",
    pytest.param("masked", marks=SLOW),
    pytest.param("maskgit", marks=SLOW),
    pytest.param("sorted", marks=SLOW),
    pytest.param("continuation", marks=SLOW),
    pytest.param("refinement", marks=SLOW),
    pytest.param("next", marks=SLOW),
]


@pytest.mark.variants(1)
@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.slow
def test_models_draft_with_the_objective_they_were_trained_for(
    objective, trained, data, tmp_path
):
    """Models start from the bundle's prior and draft without changing the images."""
    config, bundle = tmp_path / "model.py", trained / "checkpoint"
    text = MODEL.format(
        tiny=str(TINY),
        objective=objective,
        extra=int(objective not in ("next", "sorted")),
        exits=(1,) if objective == "sorted" else (),
    )
    config.write_text(text)
    command = train("prior", tmp_path, data, "--checkpoint", str(bundle))
    command[command.index("--config") + 1] = str(config)
    assert main([*command, "--start", str(bundle / "prior")]) == 0
    folder, report = tmp_path / "checkpoint" / "prior", tmp_path / "r.json"
    if objective == "continuation":  # it drafts, but cannot be drafted for
        with pytest.raises(CheckpointError, match="does not generate on its own"):
            load_prior(folder)
    command = ["generate", "--checkpoint", str(bundle), "--num", "2"]
    command += ["--tree", "chain-2", "--drafter", str(folder)]
    command += ["--report", str(report), "--out", str(tmp_path / "s.png"), "--compare"]
    assert main(command) == 0
    assert json.loads(report.read_text())["identical_to_autoregressive"]


@pytest.mark.slow
def test_verifiers_are_compared_by_image_quality(trained, data, tmp_path, capsys):
    """All metrics of `coupled` equal those of plain decoding, unlike `lantern`."""
    assert main(train("classifier", tmp_path, data, "--steps", "3")) == 0
    stem = tmp_path / "quality"
    command = ["eval", "images", "--checkpoint", str(trained / "checkpoint")]
    command += ["--data", "cifar10_packed", "--data-dir", str(data / "tfds")]
    command += ["--manual-dir", str(data), "--num", "5", "--seeds", "0", "3"]
    command += ["--verifiers", "coupled", "lantern:k=4,lam=9", "--tree", "0,1,00"]
    # The bundle has no classifier; the embedded one is of other images.
    assert main([*command, "--out", str(stem)]) == 2
    error = capsys.readouterr().err
    assert "trained on other images" in error and "--classifier" in error
    command += ["--classifier", str(tmp_path / "checkpoint" / "classifier")]
    assert main([*command, "--out", str(stem)]) == 0
    plain, coupled, relaxed = json.loads(stem.with_suffix(".json").read_text())["rows"]
    assert plain["lossless"] and coupled["lossless"] and not relaxed["lossless"]
    for key in plain.keys() - {"verifier", "tokens_per_call"}:
        assert plain[key] == coupled[key], key
    assert coupled["same_tokens"] == [1.0, 1.0] and max(relaxed["same_tokens"]) < 1.0
    assert relaxed["code_distance"][0] > 0 and np.isfinite(relaxed["psnr"]).all()
    assert "| lantern:k=4,lam=9 | no |" in stem.with_suffix(".md").read_text()
    assert stem.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    capsys.readouterr()
    assert main([*command, "--seeds", "1", "--out", str(stem)]) == 2
    assert "at least two" in capsys.readouterr().err
    text = stem.with_suffix(".json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.variants(1)
@pytest.mark.parametrize(
    "part",
    ["prior", *(pytest.param(p, marks=SLOW) for p in ("tokenizer", "drafter"))],
)
def test_a_killed_run_resumes_with_bitwise_equal_losses(trained, tmp_path, data, part):
    workdir = tmp_path / "run"
    # The part's inputs; a part whose checkpoint exists is trained again.
    shutil.copytree(trained / "checkpoint", workdir / "checkpoint")
    command = train(part, workdir, data)
    child = subprocess.run([sys.executable, "-c", DYING, *command], capture_output=True)
    assert child.returncode == -signal.SIGKILL
    saved = workdir / part / "state" / "progress.json"
    assert json.loads(saved.read_text())["step"] == 4
    assert len(list((workdir / part).glob(".state.*"))) == 1  # of the killed save
    assert main(command) == 0
    assert losses(workdir, part) == losses(trained, part)
    names = {file.name for file in (workdir / part).iterdir()}
    shown = {"curves.png", *({"samples"} if part != "drafter" else ())}
    assert names == {"state", "best", "metrics.jsonl"} | shown


OTHER_SEED = """
from dataclasses import replace
from jaxspec.train.experiment import load_experiment


def get_config():
    tiny = load_experiment({tiny!r})
    return replace(tiny, train_prior=replace(tiny.train_prior, seed=1))
"""


def test_a_state_of_another_training_is_refused(trained, tmp_path, data, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    other = tmp_path / "other.py"
    other.write_text(OTHER_SEED.format(tiny=str(TINY)))
    command = train("prior", workdir, data)
    command[command.index("--config") + 1] = str(other)
    assert main(command) == 2
    assert "choose another --out" in capsys.readouterr().err
    # The same training may resume, which invalidates the old drafter's state.
    assert main(train("prior", workdir, data, "--steps", "13")) == 0
    assert "resumes at step 12 with steps 13 (was 12)" in capsys.readouterr().err
    assert [line["step"] for line in losses(workdir, "prior")][-2:] == [13, 13]
    assert main(train("drafter", workdir, data)) == 2
    with pytest.raises(CheckpointError, match="trained for another prior"):
        load_bundle(workdir / "checkpoint")


def test_a_killed_save_preserves_the_old_state(tmp_path, monkeypatch):
    folder = tmp_path / "state"
    save_state(folder, {"x": jnp.ones(3)}, {"note": "old"})

    def die(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", die)
    with pytest.raises(KeyboardInterrupt):
        save_state(folder, {"x": jnp.zeros(3)}, {"note": "new"})
    monkeypatch.undo()
    assert (folder / "note").read_text() == "old"
    old = load_state(folder, {"x": jnp.zeros(3)})
    np.testing.assert_array_equal(old["x"], 1.0)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_missing_earlier_part_is_an_error(tmp_path, data, capsys):
    assert main(train("prior", tmp_path, data)) == 2
    assert "run `jaxspec train tokenizer`" in capsys.readouterr().err


WRONG_PARTS = {
    "a drafter as the start of a prior": (
        ["prior", "--start", "DRAFTER"],
        "choose one of kind 'prior'",
    ),
    "another prior": (["prior", "--start", "EMBEDDED"], "another configuration"),
    "a drafter as the start of a tokenizer": (
        ["tokenizer", "--start", "DRAFTER"],
        "choose one of kind 'tokenizer'",
    ),
}


@pytest.mark.parametrize("case", WRONG_PARTS)
def test_wrong_starting_checkpoints_are_refused(case, trained, data, tmp_path, capsys):
    (part, flag, start), words = WRONG_PARTS[case]
    folders = {
        "DRAFTER": trained / "checkpoint" / "drafter",
        "EMBEDDED": embedded_folder() / CLASSES / "prior",
    }
    bundle = ["--checkpoint", str(trained / "checkpoint")]
    command = train(part, tmp_path, data, *bundle, flag, str(folders[start]))
    assert main(command) == 2
    assert words in capsys.readouterr().err


def test_starting_parameters_are_not_donated():
    """The state is donated to each step; the parameters it was made from are not."""
    from jaxspec.train.optimizer import init_train_state
    from jaxspec.train.settings import TrainingConfig

    params = {"w": jnp.ones((2, 2))}
    state = init_train_state(TrainingConfig(steps=1, batch=1), params)
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(state)
    np.testing.assert_array_equal(params["w"], 1.0)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.py")), ids=lambda p: p.stem)
def test_presets_load_and_fit_together(path):
    experiment = load_experiment(path)
    if experiment.text_file is None:
        assert same_tokens(experiment.prior, experiment.tokenizer)
        assert experiment.tokenizer.length >= 64
        continuous = isinstance(experiment.tokenizer, KLTokenizerConfig)
        assert continuous or experiment.prior.vocab_size >= 1024
    shorter = with_steps(experiment, "prior", 3)
    assert shorter.train_prior.steps == 3


def test_wrong_presets_are_refused(tmp_path):
    text = load_experiment(CONFIGS / "shakespeare.py")
    with pytest.raises(ConfigError, match="has no tokenizer to train"):
        with_steps(text, "tokenizer", 3)
    with pytest.raises(ConfigError, match="needs extra_tokens=1"):
        replace(text, train_prior=PriorTrainingConfig(1, 1, objective="masked"))
    with pytest.raises(ConfigError, match="must rise"):
        PriorTrainingConfig(1, 1, objective="sorted", exits=(2, 1))
    with pytest.raises(ConfigError, match="below the 4 layers"):
        replace(
            text, train_prior=PriorTrainingConfig(1, 1, objective="sorted", exits=(4,))
        )
    with pytest.raises(ConfigError, match="no config file at"):
        load_experiment(tmp_path / "none.py")
    file = tmp_path / "bad.py"
    file.write_text("def get_config():\n    return 3\n")
    with pytest.raises(ConfigError, match="must return an Experiment"):
        load_experiment(file)
    file.write_text("raise RuntimeError('oh')\n")
    with pytest.raises(ConfigError, match="failed: oh"):
        load_experiment(file)


def test_dead_codes_are_reset_and_used_ones_stay():
    from jaxspec.train.tokenizer import _update_codebook

    key = jax.random.key(0)
    vectors = jax.random.normal(key, (4, 8, 8, 4))
    vectors /= jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    book = jnp.eye(4)[jnp.arange(16) % 4] * 1.0
    state = {
        "codebook": book,
        "sums": 10.0 * book,
        "counts": jnp.where(jnp.arange(16) < 4, 10.0, 0.0),
    }
    codes = jnp.argmax(vectors @ book[:4].T, axis=-1)
    new = _update_codebook(key, state, vectors, codes, jnp.array(False))
    np.testing.assert_allclose(jnp.linalg.norm(new["codebook"], axis=1), 1, atol=1e-5)
    assert (jnp.sum(new["codebook"][:4] * book[:4], axis=1) > 0.9).all()
    # Reset codes are vectors of the batch, all different.
    flat = np.asarray(vectors).reshape(-1, 4)
    for code in np.asarray(new["codebook"][4:]):
        assert np.abs(flat - code).sum(-1).min() < 1e-4
    assert len(np.unique(np.asarray(new["codebook"]).round(4), axis=0)) == 16
    late = _update_codebook(key, state, vectors, codes, jnp.array(True))
    np.testing.assert_array_equal(late["counts"][4:], 0.0)


HEAD = """
from dataclasses import replace
from jaxspec.drafters.eagle.network import EagleConfig
from jaxspec.train.experiment import load_experiment


def get_config():
    tiny = load_experiment({tiny!r})
    head = EagleConfig(
        3, width=16, heads=2, ffn_width=32, feature_layers=(0, 1), draft_vocab=8
    )
    return replace(tiny, drafter=head)
"""


SELF_GENERATED = """
from dataclasses import replace
from jaxspec.train.experiment import load_experiment


def get_config():
    tiny = load_experiment({tiny!r})
    training = replace(
        tiny.train_drafter, steps=6, max_cfg_scale=2.0, self_generated=24,
        learning_rate=1e-2, cached={cached!r},
    )
    return replace(tiny, train_drafter=training)
"""


@pytest.mark.slow
def test_a_second_drafter_of_a_bundle_is_trained_and_loaded_from_its_folder(
    trained, data, tmp_path
):
    """An EAGLE-3 head over the eight most frequent tokens, beside the bundle's own."""
    config = tmp_path / "head.py"
    config.write_text(HEAD.format(tiny=str(TINY)))
    bundle, workdir = str(trained / "checkpoint"), tmp_path / "run"
    command = train("drafter", workdir, data, "--checkpoint", bundle)
    command[command.index("--config") + 1] = str(config)
    assert main(command) == 0
    folder = workdir / "checkpoint" / "drafter"
    assert "EAGLE" in (folder / "README.md").read_text()
    report = tmp_path / "r.json"
    command = ["generate", "--checkpoint", bundle, "--num", "1", "--tree", "0,1,00"]
    command += ["--drafter", str(folder), "--report", str(report), "--compare"]
    assert main([*command, "--out", str(tmp_path / "s.png")]) == 0
    assert json.loads(report.read_text())["identical_to_autoregressive"]
    # A training that starts from it keeps its draft vocabulary.
    head = load_checkpoint(folder)
    ids = head.params["ids"]
    other = jnp.sort((ids + 1) % 16)
    save(tmp_path / "start", replace(head, params={**head.params, "ids": other}))
    command = train("drafter", tmp_path / "on", data, "--checkpoint", bundle)
    command[command.index("--config") + 1] = str(config)
    assert main([*command, "--start", str(tmp_path / "start")]) == 0
    further = load_checkpoint(tmp_path / "on" / "checkpoint" / "drafter")
    np.testing.assert_array_equal(further.params["ids"], other)
    assert (ids != other).any()


@pytest.mark.slow
def test_a_drafter_starts_from_another_on_self_generated_sequences(
    trained, data, tmp_path, capsys
):
    """No data set is read; the first loss is that of the trained drafter."""
    config, bundle = tmp_path / "self_generated.py", trained / "checkpoint"
    config.write_text(SELF_GENERATED.format(tiny=str(TINY), cached="float32"))
    command = ["train", "drafter", "--config", str(config), "--checkpoint", str(bundle)]
    fresh, further = tmp_path / "fresh", tmp_path / "further"
    assert main([*command, "--workdir", str(fresh)]) == 0
    start = ["--start", str(fresh / "checkpoint" / "drafter")]
    assert main([*command, "--workdir", str(further), *start]) == 0
    first, second = (losses(run, "drafter") for run in (fresh, further))
    # The same batch; a prior of twelve steps is nearly even, so the gap is small.
    assert second[0]["loss"] < first[0]["loss"] - 1e-4
    assert (
        "other sequences that the target generated"
        in (fresh / "checkpoint" / "drafter" / "README.md").read_text()
    )
    head = tmp_path / "head.py"
    head.write_text(HEAD.format(tiny=str(TINY)))
    command[command.index("--config") + 1] = str(head)
    other = ["--workdir", str(tmp_path / "other"), "--manual-dir", str(data)]
    folders = ["--data-dir", str(data / "tfds")]
    assert main([*command, *other, *folders, *start]) == 2
    assert "choose one of kind 'eagle'" in capsys.readouterr().err
