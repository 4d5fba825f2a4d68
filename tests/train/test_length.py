"""Length of a training from the time that it may take."""

import json
import time

import jax.numpy as jnp
import pytest

from jaxspec.errors import CheckpointError
from jaxspec.train.experiment import load_experiment
from jaxspec.train.length import with_length
from jaxspec.train.loop import Training, TrainingJob
from jaxspec.train.sharding import ONE_DEVICE
from jaxspec.train.workdir import lock_workdir
from tests.train.commands import TINY


def slow_job(experiment):
    """A training whose steps take 20 ms each, because of their batches."""

    def batch_fn(step):
        time.sleep(0.02)
        return jnp.zeros(1)

    training = Training(
        "prior",
        experiment.train_prior,
        lambda state, step, batch: (state + batch, {"loss": batch[0]}),
        batch_fn,
        lambda state: {"heldout_loss": 0.0},
        "",
    )
    return TrainingJob(training, jnp.zeros(1), lambda params, metrics: None)


def length(folder, seconds, steps=10_000, preparation=lambda: 0.0):
    from jaxspec.train.experiment import with_steps

    experiment = with_steps(load_experiment(TINY), "prior", steps)
    experiment, job = with_length(
        experiment,
        "prior",
        folder,
        slow_job,
        seconds=seconds,
        sharding=ONE_DEVICE,
        preparation=preparation,
    )
    assert job.training.config == experiment.train_prior
    return experiment.train_prior


def test_steps_follow_from_time_and_are_kept(tmp_path):
    """A second start has the steps of the first one, whatever its time."""
    steps = length(tmp_path, 10.0).steps
    assert 20 < steps <= 400  # 80 % of the time, at 20 ms a step or more
    assert json.loads((tmp_path / "plan.json").read_text()) == {"steps": steps}
    (tmp_path / "state").mkdir()
    assert length(tmp_path, 99.0).steps == steps


def test_a_plan_follows_a_number_of_steps_that_is_given(tmp_path):
    steps = length(tmp_path, 10.0).steps
    (tmp_path / "state").mkdir()
    assert length(tmp_path, None, steps=steps + 50).steps == steps + 50
    assert length(tmp_path, 10.0).steps == steps + 50


def test_preparing_data_takes_a_part_of_the_time(tmp_path):
    alone = length(tmp_path / "alone", 10.0).steps
    assert length(tmp_path / "both", 10.0, preparation=lambda: 0.06).steps < alone / 2


@pytest.mark.parametrize("steps, every", [(80, 80), (120, 60), (800, 100)])
def test_no_more_steps_are_taken_than_help(tmp_path, steps, every):
    """Evaluations take time too: one for every 50 steps, at most eight."""
    training = length(tmp_path, 600.0, steps=steps)
    assert training.steps == steps
    assert (training.evaluate_every, training.save_every) == (every, every)
    assert training.warmup == min(2, steps // 10)


def test_the_number_of_steps_is_printed_and_never_tiny(tmp_path, capsys):
    assert length(tmp_path, 0.1).steps == 20
    assert "prior: 20 steps, about 1 s" in capsys.readouterr().err


def test_without_a_time_the_preset_decides(tmp_path):
    assert length(tmp_path, None, steps=7).steps == 7
    assert not (tmp_path / "plan.json").exists()


def test_two_trainings_do_not_share_a_folder(tmp_path):
    with lock_workdir(tmp_path / "run"):
        with pytest.raises(CheckpointError, match="another process trains in"):
            with lock_workdir(tmp_path / "run"):
                pass
    with lock_workdir(tmp_path / "run"):
        pass
