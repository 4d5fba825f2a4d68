"""Training loop: saved states, refused states, and resuming."""

import json
import signal
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import load_state
from jaxspec.errors import CheckpointError, ConfigError, NonFiniteError
from jaxspec.train.identity import MAY_CHANGE, fingerprint
from jaxspec.train.loop import Training, fit
from jaxspec.train.settings import (
    DrafterTrainingConfig,
    PriorTrainingConfig,
    TrainingConfig,
)

CONFIG = TrainingConfig(
    steps=12, batch=2, log_every=7, evaluate_every=3, save_every=2, learning_rate=0.1
)
START = {"w": jnp.ones(3), "count": jnp.zeros((), jnp.int32)}


def run(workdir, config, spoil=lambda step: {}, observers=()):
    """Trains a decaying weight; `spoil(step)` adds NaN to a loss, weight or metric."""

    def step_fn(state, step, _):
        bad = spoil(int(step) + 1)
        w = state["w"] - config.learning_rate * state["w"] + bad.get("w", 0.0)
        loss = jnp.sum(state["w"] ** 2) + bad.get("loss", 0.0)
        return {"w": w, "count": state["count"] + 1}, {"loss": loss}

    def evaluate(state):
        bad = spoil(int(state["count"]))
        return {"heldout_loss": float(jnp.sum(state["w"])) + bad.get("heldout", 0.0)}

    training = Training(
        "toy",
        config,
        step_fn,
        lambda step: None,
        evaluate,
        fingerprint("model", config, "data"),
        result=lambda state: {"w": state["w"]},
    )
    return fit(workdir, START, training, observers)


def lines_of(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("what", ["loss", "w", "heldout"])
def test_nonfinite_values_are_not_saved_and_a_lower_rate_resumes(
    what, tmp_path, capsys
):
    """A value is NaN from step 5 on, which is not a multiple of `log_every`."""

    def spoil(step):
        return {what: np.nan} if step >= 5 else {}

    with pytest.raises(NonFiniteError, match="resumes from step 4$") as error:
        run(tmp_path, CONFIG, spoil)
    assert "lower learning_rate" in str(error.value) and "at step 6" in str(error.value)
    state = load_state(tmp_path / "state", START)
    best = load_state(tmp_path / "best", {"w": START["w"]})
    assert int(state["count"]) == 4
    assert bool(jnp.isfinite(state["w"]).all() & jnp.isfinite(best["w"]).all())
    capsys.readouterr()
    params, metrics = run(tmp_path, replace(CONFIG, learning_rate=0.05))
    assert "toy resumes at step 4 with learning_rate 0.05 (was 0.1)\n" in (
        capsys.readouterr().err
    )
    np.testing.assert_allclose(params["w"], 0.9**4 * 0.95**8, rtol=1e-6)
    assert metrics["step"] == 12


def test_without_a_saved_state_training_starts_again(tmp_path):
    with pytest.raises(NonFiniteError, match="starts from the beginning$"):
        run(tmp_path, CONFIG, lambda step: {"loss": np.nan})
    assert run(tmp_path, CONFIG)[1]["step"] == 12


def test_a_finished_training_resumes_with_more_steps(tmp_path):
    """The log equals that of a single run over all steps."""
    run(tmp_path / "whole", replace(CONFIG, steps=24, log_every=1))
    run(tmp_path / "parts", replace(CONFIG, log_every=1))
    params, metrics = run(tmp_path / "parts", replace(CONFIG, steps=24, log_every=1))
    assert metrics["step"] == 24
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")
    again, _ = run(tmp_path / "parts", replace(CONFIG, steps=24, log_every=1))
    np.testing.assert_array_equal(params["w"], again["w"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 8}, "has taken 12 steps, more than 8; set more --steps"),
        (
            {"learning_rate": 0.05},
            r"finished after 12 steps.*learning_rate 0.05 \(was 0.1\)",
        ),
        ({"ema": 0.5}, r"finished after 12 steps.*ema 0.5"),
    ],
)
def test_settings_of_a_finished_training_cannot_change(tmp_path, change, words):
    run(tmp_path, CONFIG)
    with pytest.raises(ConfigError, match=words):
        run(tmp_path, replace(CONFIG, **change))


def test_a_finished_training_may_be_saved_and_logged_at_other_intervals(tmp_path):
    params, _ = run(tmp_path, CONFIG)
    again, _ = run(tmp_path, replace(CONFIG, save_every=3, log_every=1))
    np.testing.assert_array_equal(params["w"], again["w"])


def test_metrics_are_those_of_the_returned_parameters(tmp_path):
    """The best state was saved before the run was killed."""

    def stop(step):
        if step == 7:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):  # best/ is of step 6, state/ of step 5
        run(tmp_path, replace(CONFIG, save_every=5), stop)
    worse = replace(CONFIG, save_every=5, learning_rate=1e-9)
    params, metrics = run(tmp_path, worse)
    np.testing.assert_allclose(params["w"], 0.9**6, rtol=1e-6)
    assert metrics["step"] == 6
    assert metrics["heldout_loss"] == pytest.approx(float(jnp.sum(params["w"])))


def test_the_last_step_is_kept_where_asked(tmp_path):
    """A weight that grows to 3 has its lowest held-out loss when measured first."""

    def grow(step):
        return {"w": 0.3}

    best, at_best = run(tmp_path / "best", CONFIG, grow)
    last, at_last = run(tmp_path / "last", replace(CONFIG, keep="last"), grow)
    assert (at_best["step"], at_last["step"]) == (3, 12)
    np.testing.assert_allclose(best["w"], 3 - 2 * 0.9**3, rtol=1e-6)
    np.testing.assert_allclose(last["w"], 3 - 2 * 0.9**12, rtol=1e-6)


def test_a_state_without_a_setting_has_its_default(tmp_path, capsys):
    """States of earlier versions have no `keep`."""
    run(tmp_path, CONFIG)
    file = tmp_path / "state" / "progress.json"
    progress = json.loads(file.read_text())
    del progress["settings"]["keep"]
    file.write_text(json.dumps(progress))
    run(tmp_path, CONFIG)
    run(tmp_path, replace(CONFIG, steps=15, keep="last"))
    assert "with steps 15 (was 12), keep last (was best)" in capsys.readouterr().err


def test_states_of_another_training_are_refused(tmp_path):
    """Neither its state nor its best checkpoint is used."""

    def stop(step):
        if step == 7:
            raise KeyboardInterrupt
        return {}

    run(tmp_path, replace(CONFIG, seed=1, steps=3, learning_rate=0.9))
    with pytest.raises(CheckpointError, match="remove it or choose another"):
        run(tmp_path, CONFIG)
    (tmp_path / "state").rename(tmp_path / "elsewhere")
    late = replace(CONFIG, evaluate_every=100)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, late, stop)
    assert run(tmp_path, late)[1]["step"] == 12


def test_a_fingerprint_identifies_model_settings_and_data():
    original = fingerprint("model", CONFIG)
    changes = {
        name: getattr(CONFIG, name) * 2
        for name in MAY_CHANGE
        if name not in ("beta2", "keep")
    } | {"beta2": 0.5, "ema": 0.5, "keep": "last"}
    assert all(
        fingerprint("model", replace(CONFIG, **{name: value})) == original
        for name, value in changes.items()
    )
    others = {"batch": 3, "seed": 1, "compute_dtype": "bfloat16"}
    assert all(
        fingerprint("model", replace(CONFIG, **{name: value})) != original
        for name, value in others.items()
    )


DEFAULTS = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
}


@pytest.fixture
def default_handlers():
    """Handlers of a program started from a terminal; a test runner may have others."""
    before = {n: signal.signal(n, handler) for n, handler in DEFAULTS.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("default_handlers")
@pytest.mark.parametrize("number", list(DEFAULTS))
def test_a_signal_ends_the_step_saves_and_is_raised(tmp_path, number, capsys):
    """The resumed run writes the log of an uninterrupted one."""
    rare = replace(CONFIG, log_every=1, save_every=100, evaluate_every=100)

    def stop(event):
        if event.step == 7:
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt if number == signal.SIGINT else SystemExit):
        run(tmp_path / "parts", rare, observers=[stop])
    assert "toy stopped and saved at step 8 of 12" in capsys.readouterr().err
    assert int(load_state(tmp_path / "parts" / "state", START)["count"]) == 8
    assert signal.getsignal(number) is DEFAULTS[number]
    run(tmp_path / "parts", rare)
    run(tmp_path / "whole", rare)
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")


def test_states_are_also_saved_by_time(tmp_path, monkeypatch):
    monkeypatch.setattr("jaxspec.train.loop.SAVE_SECONDS", 0.0)

    def stop(step):
        if step == 7:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, replace(CONFIG, save_every=100), stop)
    assert int(load_state(tmp_path / "state", START)["count"]) == 6


def test_observers_get_every_logged_step_and_parameters_at_evaluations(tmp_path):
    events = []
    config = replace(CONFIG, log_every=2, evaluate_every=6)
    run(tmp_path, config, observers=[events.append])
    logged = [event for event in events if event.params is None]
    evaluated = [event for event in events if event.params is not None]
    assert [event.step for event in logged] == [2, 4, 6, 8, 10, 12]
    assert [event.step for event in evaluated] == [6, 12]
    assert {event.steps for event in events} == {12}
    for event in evaluated:
        np.testing.assert_allclose(event.params["w"], 0.9**event.step, rtol=1e-6)
        assert event.metrics["heldout_loss"] > 0


NAN, INF = float("nan"), float("inf")
IMPOSSIBLE = {
    **{name: (0, -1, 1.5, "2", True, NAN) for name in ("steps", "batch", "log_every")},
    **dict.fromkeys(("evaluate_every", "save_every"), (0, -1)),
    **dict.fromkeys(("warmup", "seed"), (-1, 0.5)),
    **dict.fromkeys(("learning_rate", "clip"), (0, -1e-3, NAN, INF, "1e-3", None)),
    "weight_decay": (-0.1, NAN, INF),
    **dict.fromkeys(("beta2", "ema"), (-0.1, 1, 2, NAN)),
    "compute_dtype": ("float16", None),
    "keep": ("first", None),
}
OF_DRAFTERS = {
    "decay": (0, -1, NAN),
    "max_cfg_scale": (0.5, NAN, INF),
    "null_share": (-0.1, 1.1, NAN),
    "regression": (-1, NAN),
    "self_generated": (-1, 0.5),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(TrainingConfig, name) for name in IMPOSSIBLE]
    + [(DrafterTrainingConfig, name) for name in (*OF_DRAFTERS, "ema")]
    + [(PriorTrainingConfig, name) for name in ("block", "learning_rate")],
)
def test_impossible_settings_raise_one_sentence(kind, name):
    values = {**IMPOSSIBLE, **OF_DRAFTERS, "block": (0, 1.5)}[name]
    for value in values:
        with pytest.raises(ConfigError, match=f"^{name}={value!r}") as error:
            kind(**({"steps": 1, "batch": 1} | {name: value}))
        assert "\n" not in str(error.value)
