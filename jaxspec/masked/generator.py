"""Generation by a masked model: a policy decides what each step makes known."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxspec.core.arguments import batch_size, check_batch, check_keys, known_to_hold
from jaxspec.core.logits import process_logits
from jaxspec.core.noise import batch_keys, position_noise
from jaxspec.core.numbers import WHOLE
from jaxspec.core.precision import full_precision
from jaxspec.core.result import Generation, Stats
from jaxspec.core.sampling import LLAMAGEN_ORDER, Sampling, Step
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.masked.context import ContextCache, cached_logits
from jaxspec.masked.length import LengthControl, masked_before, moved
from jaxspec.masked.policies.blocks import Window
from jaxspec.masked.policies.confidence import Confidence
from jaxspec.masked.policy import Policy, View, nested, revealed_inside
from jaxspec.masked.schedule import MaskingSchedule
from jaxspec.masked.state import MaskedState, MaskedVariables
from jaxspec.models.masked_lm.model import MaskedDiffusion
from jaxspec.models.masked_lm.partial import empty_layers
from jaxspec.models.transformer.prompts import known_classes
from jaxspec.typing import Array, BatchKeys, Bool, Float, Int, Key, PyTree

# Number folded into the key of a sequence for the noise of a policy.
_POLICY = 0x80000005


def at_most(
    before: Bool[Array, "B T"], after: Bool[Array, "B T"], count: Int[Array, "B"]
) -> Bool[Array, "B T"]:
    """Known tokens after a step, without the last new ones beyond a number of all."""
    new = after & ~before
    kept = after & before
    room = count - jnp.sum(kept, axis=1)
    return kept | (new & (jnp.cumsum(new, axis=1) <= room[:, None]))


def _ends(
    stopping: StoppingCriteria, tokens: Int[Array, "B T"], known: Bool[Array, "B T"]
) -> Bool[Array, "B T"]:
    """Known stop tokens before which everything is known."""
    before = jnp.cumprod(known.astype(jnp.int32), axis=1) > 0
    return stopping.is_stop(tokens) & known & before


def _check_length(generator: "MaskedGenerator") -> None:
    """Checks that texts can get longer and shorter.

    Raises:
      ConfigError: model, policy or cache do not fit, or texts start too long.
    """
    control, config = generator.length, generator.model.model.config
    assert control is not None
    if config.condition != "none" or generator.context is not None:
        raise ConfigError("length is for models of texts, without a context")
    if getattr(generator.policy, "revises", True):
        raise ConfigError("length is for policies that mask no token again")
    if control.initial_length > generator.schedule.tokens:
        raise ConfigError(
            f"texts of {control.initial_length} tokens at the start are longer than "
            f"the {generator.schedule.tokens} of the schedule"
        )


@dataclass(frozen=True)
class MaskedGenerator:
    """Implements `Generator` for models that fill in masked tokens; static.

    Each step samples all masked tokens at once, and a policy decides which of them
    stay: the network and the order are independent of each other. `Generation.tokens`
    are -1 where a token is still masked.

    The noise of a token depends on the key of its sequence, its position and the step,
    so that tokens do not depend on the batch.

    Attributes:
      model: the model.
      schedule: steps, the share of masked tokens after each, and guidance.
      policy: rule of the tokens that are known after a step.
      cfg: whether an unconditional branch is computed.
      order: logits processors in their order.
      context: tokens that are taken from a cache in some passes; None for none.
      length: rule by which texts get longer or shorter; None for that of the schedule.

    Raises:
      ConfigError: model, schedule and cache do not fit each other.
    """

    model: MaskedDiffusion
    schedule: MaskingSchedule
    policy: Policy = Confidence()
    cfg: bool = True
    order: tuple[Step, ...] = LLAMAGEN_ORDER
    context: ContextCache | None = None
    length: LengthControl | None = None

    def __post_init__(self):
        config = self.model.model.config
        if config.condition != "none" and self.schedule.tokens != (
            config.sequence_length
        ):
            raise ConfigError(
                f"a schedule of {self.schedule.tokens} tokens does not fit a model of "
                f"{config.sequence_length}"
            )
        captions = config.condition == "caption"
        if self.context is not None and (self.model.shifted or captions):
            raise ConfigError(
                "context is for models of classes or texts whose positions predict "
                "their own token; use context=None"
            )

        if self.length is not None:
            _check_length(self)
        for policy in nested(self.policy):
            if check := getattr(policy, "check_model", None):
                check(config)
        active = self.context and self.context.active
        if active and not (
            isinstance(self.policy, Window) and self.policy.size <= active
        ):
            raise ConfigError(
                f"active={active} needs a policy Window(policy, size) with a size of "
                f"at most {active}"
            )

    @property
    def max_new_tokens(self) -> int:
        """Number of tokens of a sequence."""
        return self.schedule.tokens

    @full_precision
    def init(
        self,
        variables: MaskedVariables,
        prompt: PyTree,
        *,
        sampling: Sampling,
        keys: BatchKeys | Key[Array, ""],
        stopping: StoppingCriteria | None = None,
    ) -> MaskedState:
        """First state of a batch, see `Generator.init`.

        Raises:
          ConfigError: prompts, keys and settings do not fit each other.
        """
        config = self.model.model.config
        if config.condition == "class":
            prompt = known_classes(prompt, config.classes)
        batch = batch_size(prompt, keys)
        keys = keys if keys.ndim else batch_keys(keys, batch)
        check_keys(keys)
        check_batch(batch, prompt=prompt)
        if not isinstance(variables, MaskedVariables):
            raise ConfigError("variables are no MaskedVariables(params)")
        if known_to_hold((sampling.cfg_tokens < WHOLE).any()):
            raise ConfigError("every step is guided: leave out cfg_interval")
        read = 0 if config.condition != "none" or prompt is None else prompt.shape[1]
        if config.condition == "none" and read + self.schedule.tokens > (
            config.sequence_length
        ):
            raise ConfigError(
                f"{self.schedule.tokens} tokens after prompts of {read} do not fit a "
                f"model of {config.sequence_length}"
            )
        if not self.cfg and known_to_hold((sampling.cfg_scale != 1).any()):
            raise ConfigError("guidance needs an unconditional branch: cfg=True")
        stopping = stopping or StoppingCriteria.create(
            max_new_tokens=self.max_new_tokens
        )
        if self.length is not None and known_to_hold((stopping.stop_tokens < 0).all()):
            raise ConfigError("texts find their length by a stop token: give one")
        layers, seen, reach = (), None, None
        if self.context is not None:
            branches = 2 if self.cfg and config.condition != "none" else 1
            length = self.schedule.tokens + (read or config.prefix_length)
            dtype = jnp.result_type(variables.params["embedding"]["embedding"])
            layers = empty_layers(self.model.model, branches * batch, length, dtype)
            seen = jnp.zeros((batch, self.schedule.tokens), bool)
            reach = jnp.full(batch, self.schedule.tokens, jnp.int32)
        zeros = jnp.zeros(batch, jnp.int32)
        first = None if self.length is None else zeros + self.length.initial_length
        shape = batch, self.schedule.tokens
        return MaskedState(
            tokens=jnp.full(shape, self.model.mask_token, jnp.int32),
            known=jnp.zeros(shape, bool),
            log_p=jnp.zeros(shape, jnp.float32),
            steps=zeros,
            # Copied, because the state may be donated while the arguments may not.
            prompt=jax.tree.map(jnp.copy, prompt),
            keys=jax.random.clone(keys),
            sampling=jax.tree.map(jnp.copy, sampling.for_batch(batch)),
            stopping=jax.tree.map(jnp.copy, stopping.for_batch(batch)),
            done=zeros > 0,
            stats=Stats.without_drafts(jnp.copy(zeros)),
            finite=zeros == 0,
            layers=layers,
            read=seen,
            reach=reach,
            length=first,
            changes=None if first is None else jnp.copy(zeros),
        )

    @full_precision
    def step(self, variables: MaskedVariables, state: MaskedState) -> MaskedState:
        """State after one more pass of the model."""
        live, steps = ~state.done, state.steps
        view, finite, state = self.look(variables, state)
        tokens, log_p = view.tokens, view.log_p
        last = steps + 1 >= self.schedule.steps
        inside = self._inside(state)
        if self.length is None:
            known = self.policy.reveal(view)
        else:
            known = revealed_inside(self.policy, view, inside) & inside
        known = jnp.where(live[:, None], known | last[:, None] & inside, state.known)
        known = at_most(state.known, known, state.stopping.max_new_tokens)
        count = jnp.sum(known, axis=1, dtype=jnp.int32)
        ended = count >= state.stopping.max_new_tokens
        # What follows a stop token is left out once everything before it is known.
        if not getattr(self.policy, "revises", True):
            ended |= jnp.any(_ends(state.stopping, tokens, known), axis=1)
        one = live.astype(jnp.int32)
        stats = replace(
            state.stats, calls=state.stats.calls + one, rounds=state.stats.rounds + 1
        )
        state = replace(
            state,
            tokens=jnp.where(known, tokens, self.model.mask_token),
            known=known,
            log_p=jnp.where(known, log_p, 0.0),
            steps=steps + one,
            done=state.done | ended,
            stats=stats,
            finite=state.finite & (finite | ~live),
        )
        if self.length is not None:
            state = self._lengthened(view, state, last)
        whole = jnp.all(state.known | ~self._inside(state), axis=1)
        return replace(state, done=state.done | whole)

    def _inside(self, state: MaskedState) -> Bool[Array, "B T"]:
        """Positions that belong to the sequence."""
        if state.length is None:
            return jnp.ones_like(state.known)
        return jnp.arange(state.known.shape[1])[None] < state.length[:, None]

    def _lengthened(
        self, view: View, state: MaskedState, last: Bool[Array, "B"]
    ) -> MaskedState:
        """State whose texts got longer or shorter before their first stop token.

        In the last step of the schedule, which makes all known, they do not.
        """
        assert self.length is not None and state.length is not None
        assert state.changes is not None
        likeliest = jnp.argmax(view.logits, axis=-1)
        change = self.length.change(state.stopping.is_stop(likeliest), ~view.known)
        stops = state.stopping.is_stop(state.tokens) & state.known
        index = jnp.arange(state.known.shape[1])[None]
        place = jnp.min(jnp.where(stops, index, state.length[:, None]), axis=1)
        room = state.known.shape[1] - state.length
        # One masked token stays, so that complete texts end with a stop token.
        masked = jnp.sum(~state.known & self._inside(state), axis=1)
        most = jnp.minimum(masked_before(state.known, place), masked - 1)
        count = jnp.clip(change, -jnp.maximum(most, 0), room)
        open_ = ~state.done & ~last & (state.changes < self.length.max_changes)
        count = jnp.where(open_, count, 0).astype(jnp.int32)

        def move(values, filling):
            return moved(values, place, count, filling)

        return replace(
            state,
            tokens=move(state.tokens, self.model.mask_token),
            known=move(state.known, False),
            log_p=move(state.log_p, 0.0),
            length=state.length + count,
            changes=state.changes + (count != 0),
        )

    def look(
        self, variables: MaskedVariables, state: MaskedState
    ) -> tuple[View, Bool[Array, "B"], MaskedState]:
        """A step before the policy decides.

        Args:
          variables: arrays that all sequences share.
          state: sequences.

        Returns:
          What the policy reads, whether the logits are finite, and the state with the
          cache of the pass.
        """
        steps = state.steps
        logits, finite, state = self._logits(variables, state)
        sampled, log_p = self._sample(state, logits)
        known = (
            state.known if self.length is None else state.known | ~self._inside(state)
        )
        view = View(
            tokens=jnp.where(state.known, state.tokens, sampled),
            known=known,
            log_p=jnp.where(state.known, state.log_p, log_p),
            logits=logits,
            step=steps,
            before=self.schedule.after(steps),
            left=self.schedule.after(steps + 1),
            progress=(steps + 1).astype(jnp.float32) / self.schedule.steps,
            keys=jax.vmap(jax.random.fold_in, (0, None))(
                state.keys, jnp.uint32(_POLICY)
            ),
            prompt=state.prompt,
            params=variables.policy,
        )
        return view, finite, state

    def done(self, state: MaskedState) -> Bool[Array, "B"]:
        """Mask of the sequences that have ended."""
        return state.done

    def result(self, state: MaskedState) -> Generation:
        """Tokens so far, -1 where one is masked; those after a stop token are left out.

        A stop token ends a sequence once everything before it is known.
        """
        ends = _ends(state.stopping, state.tokens, state.known)
        place = jnp.argmax(ends, axis=1)[:, None]
        kept = ~jnp.any(ends, axis=1, keepdims=True) | (
            jnp.arange(state.tokens.shape[1])[None] <= place
        )
        known = state.known & kept
        return Generation(
            jnp.where(known, state.tokens, -1),
            jnp.sum(known, axis=1, dtype=jnp.int32),
            state.stats,
            state.finite,
        )

    def _logits(
        self, variables: MaskedVariables, state: MaskedState
    ) -> tuple[Float[Array, "B T V"], Bool[Array, "B"], MaskedState]:
        """Logits after guidance and filters, whether they are finite, and the cache."""
        scale = self.schedule.scale(state.sampling.cfg_scale, state.steps)
        sampling = replace(state.sampling, cfg_scale=scale)
        arguments = variables.params, state.prompt, state.tokens
        if self.length is not None:
            logits = self.model.score(*arguments, lengths=state.length)
        elif self.context is not None:
            logits, state = cached_logits(self, variables, state, sampling)
        elif self.cfg:
            logits = self.model(*arguments, sampling)
        else:
            logits = self.model.score(*arguments)
        logits = process_logits(logits.astype(jnp.float32), sampling, self.order)
        finite = jnp.isfinite(jnp.max(logits, axis=-1))
        needless = state.known | ~self._inside(state)
        return logits, jnp.all(finite | needless, axis=1), state

    def _sample(
        self, state: MaskedState, logits: Float[Array, "B T V"]
    ) -> tuple[Int[Array, "B T"], Float[Array, "B T"]]:
        """Samples of all positions, and their log-probabilities."""
        length, size = logits.shape[1:]
        positions = (
            state.steps[:, None] * length + jnp.arange(length, dtype=jnp.int32)[None]
        )
        noise = position_noise(state.keys, positions, size)
        greedy = (state.sampling.temperature == 0)[:, None, None]
        tokens = jnp.argmax(logits + jnp.where(greedy, 0.0, noise), axis=-1)
        tokens = tokens.astype(jnp.int32)
        log_p = jax.nn.log_softmax(logits)
        return tokens, jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
