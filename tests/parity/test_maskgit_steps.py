"""Steps of MaskGIT's sampler against the scheduler of diffusers, with equal noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from jaxspec.core.noise import batch_keys
from jaxspec.masked import Confidence, MaskingSchedule
from jaxspec.masked.policy import View

torch = pytest.importorskip("torch")
amused = pytest.importorskip("diffusers.schedulers.scheduling_amused")
pytestmark = pytest.mark.parity
ROWS, TOKENS, VOCAB, STEPS, TEMPERATURE = 3, 40, 11, 8, 4.5


def masks(shape, monkeypatch, temperature=TEMPERATURE):
    """Masked tokens after each step, ours and theirs; each continues its own."""
    schedule = MaskingSchedule(TOKENS, STEPS, shape)
    policy = Confidence("sampled", temperature)
    theirs = amused.AmusedScheduler(mask_token_id=VOCAB, masking_schedule=shape)
    first = TEMPERATURE * (1 - 1 / STEPS)  # falls to 0 at the last step
    theirs.set_timesteps(STEPS, temperature=(first, 0.0))
    rng = np.random.default_rng(0)
    sample = torch.full((ROWS, TOKENS), VOCAB)
    known = jnp.zeros((ROWS, TOKENS), bool)
    log_p = jnp.zeros((ROWS, TOKENS))
    for step in range(STEPS):
        logits = rng.standard_normal((ROWS, TOKENS, VOCAB)).astype(np.float32)
        drawn = rng.integers(0, VOCAB, (ROWS, TOKENS))
        steps = jnp.full(ROWS, step)
        scores = jax.nn.log_softmax(logits)
        scores = jnp.take_along_axis(scores, drawn[..., None], -1)[..., 0]
        log_p = jnp.where(known, log_p, scores)
        view = View(
            tokens=jnp.asarray(drawn),
            known=known,
            log_p=log_p,
            logits=jnp.asarray(logits),
            step=steps,
            before=schedule.after(steps),
            left=schedule.after(steps + 1),
            progress=(steps + 1) / STEPS,
            keys=batch_keys(step, ROWS),
            prompt=None,
            params=None,
        )
        noise = torch.from_numpy(np.array(view.gumbel()))
        rows = torch.from_numpy(drawn.reshape(-1, 1))
        with monkeypatch.context() as patch:
            patch.setattr(torch, "multinomial", lambda *_, **__: rows)  # noqa: B023
            patch.setattr(amused, "gumbel_noise", lambda *_, **__: noise)  # noqa: B023
            timestep = int(theirs.timesteps[step])
            out = theirs.step(torch.from_numpy(logits), timestep, sample)
        sample, known = out.prev_sample, policy.reveal(view)
        known |= step == STEPS - 1
        yield np.asarray(~known), (sample == VOCAB).numpy()


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_each_step_masks_the_same_tokens(shape, monkeypatch):
    """The control: a choice whose noise is another."""
    for ours, theirs in masks(shape, monkeypatch):
        assert_array_equal(ours, theirs)
    assert not theirs.any()
    other = list(masks(shape, monkeypatch, temperature=1.0))
    assert any((ours != theirs).any() for ours, theirs in other)
