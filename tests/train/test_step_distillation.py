"""Masked models that learn two steps of their teacher in one (SDTT)."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxspec.checkpoint import Checkpoint
from jaxspec.data.image_tokens import TokenSource
from jaxspec.errors import ConfigError
from jaxspec.train.prior import prior_job
from jaxspec.train.step_distillation import step_distillation_loss
from tests.masked.models import Joint, random_joint
from tests.models.tiny import random_params
from tests.train.tiny import get_config


class Conditional(Joint):
    """`Joint` that takes a null condition as a network does."""

    def score(self, params, prompt, tokens, *, null=None):
        return super().score(params, prompt, tokens)


def loss_of(student, teacher, *, steps, batch, seed=0):
    model = Conditional(2, 3)
    tokens = jnp.zeros((batch, 2), jnp.int32)
    null = jnp.zeros(batch, bool)
    return step_distillation_loss(
        model, student, teacher, tokens, None, null, jax.random.key(seed), steps=steps
    )


def enumerated(joint):
    """Mean over all ways of a teacher of two steps to make two tokens known."""
    p = np.asarray(joint, np.float64)
    marginals = p.sum(1), p.sum(0)

    def divergence(q, target):
        return np.sum(q * np.log(q / target))

    total = 0.0
    for row in range(2):
        q = marginals[row]
        total += 0.5 * divergence(q, marginals[row])  # known after the first step
        # Masked after it: the other token is masked too, or was drawn.
        total += 0.25 * divergence(q, marginals[row])
        table = p if row == 1 else p.T
        for other in range(3):
            conditional = table[other] / table[other].sum()
            total += 0.25 * marginals[1 - row][other] * divergence(q, conditional)
    return total / 2


def test_the_loss_is_the_mean_over_all_ways_of_the_teacher():
    """Controls: independent tokens need no second step; one of three steps differs."""
    joint = random_joint(2, 3, seed=1)
    right = enumerated(joint)
    losses = [loss_of(joint, joint, steps=2, batch=4000, seed=s) for s in range(12)]
    error = np.std(losses) / len(losses) ** 0.5
    assert right > 0.05 and abs(np.mean(losses) - right) < 5 * error
    assert error < 0.05 * right
    independent = joint.sum(1)[:, None] * joint.sum(0)[None]
    assert abs(loss_of(independent, independent, steps=2, batch=500)) < 1e-6
    assert loss_of(independent, joint, steps=2, batch=4000) > 0.05


def test_the_teacher_gets_no_gradient_and_the_student_learns():
    teacher = random_joint(2, 3, seed=1)

    def loss(student, teacher, key):
        student = jax.nn.softmax(student.reshape(-1)).reshape(3, 3)
        return step_distillation_loss(
            Conditional(2, 3),
            student,
            teacher,
            jnp.zeros((500, 2), jnp.int32),
            None,
            jnp.zeros(500, bool),
            key,
            steps=2,
        )

    student = jnp.log(teacher)
    found = jax.grad(loss, argnums=1)(student, teacher, jax.random.key(0))
    assert not found.any()
    step = jax.jit(jax.value_and_grad(loss))
    first = None
    for i in range(60):
        value, gradient = step(student, teacher, jax.random.key(i))
        first = value if first is None else first
        student = student - 0.5 * gradient
    assert value < 0.95 * first


def make_job(start, **settings):
    experiment = get_config()
    prior = replace(experiment.prior, extra_tokens=1)
    settings = {"objective": "distilled", "teacher_steps": 4, **settings}
    training = replace(experiment.train_prior, **settings)
    experiment = replace(experiment, prior=prior, drafter=None, train_prior=training)
    tokens = np.random.default_rng(0).integers(0, 16, (1, 40, 16)).astype(np.uint16)
    source = TokenSource(tokens, np.arange(40) % 3, "digest")
    return experiment, prior_job(experiment, source, source, start)


@pytest.mark.slow
def test_a_masked_model_is_distilled_and_stays_one():
    sizes = replace(get_config().prior, extra_tokens=1)
    # Large parameters, so that tokens depend on each other.
    params = jax.tree.map(lambda x: 3 * x, random_params(sizes))
    start = Checkpoint("prior", sizes, params, {"objective": "maskgit"})
    _, job = make_job(start, learning_rate=1e-3, steps=100)
    state, training = job.state, job.training
    before = training.evaluate(state, *training.frozen)["heldout_loss"]
    step = jax.jit(training.step_fn)
    for i in range(100):
        state, _ = step(state, *training.frozen, jnp.int32(i), training.batch_fn(i))
    state = {**state, "average": state["params"]}
    assert training.evaluate(state, *training.frozen)["heldout_loss"] < before
    saved = job.finish(state["params"], {})["prior"]
    assert saved.metadata["objective"] == "maskgit"


def test_a_model_to_start_from_is_needed():
    with pytest.raises(ConfigError, match="needs a masked model to start from"):
        make_job(None)
    sizes = replace(get_config().prior, extra_tokens=1)
    next_token = Checkpoint("prior", sizes, random_params(sizes), {"objective": "next"})
    with pytest.raises(ConfigError, match="needs a masked model to start from"):
        make_job(next_token)
    with pytest.raises(ConfigError, match="teacher_steps=1"):
        make_job(next_token, teacher_steps=1)
