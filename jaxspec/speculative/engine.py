"""Speculative generation from an autoregressive target."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp

from jaxspec.core.kv_cache import extend_cache
from jaxspec.core.mesh_sync import any_group
from jaxspec.core.result import Generation, LogProbs
from jaxspec.core.sampling import Sampling
from jaxspec.core.stopping import StoppingCriteria
from jaxspec.errors import ConfigError
from jaxspec.speculative.commit_step import commit
from jaxspec.speculative.draft_step import draft
from jaxspec.speculative.engine_config import EngineConfig
from jaxspec.speculative.init_state import init_state
from jaxspec.speculative.input_checks import join_drafter_params
from jaxspec.speculative.state import SpecState, Variables
from jaxspec.speculative.verify_step import verify
from jaxspec.typing import Array, BatchKeys, Bool, Int, Key, Params, PyTree


@dataclass(frozen=True)
class Engine(EngineConfig):
    """Speculative generation as pure functions; static under `jit`.

    Implements `Generator`. With `Coupled` (the default verifier) the tokens are those
    of plain decoding; other lossless verifiers keep the distribution of the tokens::

        engine = Engine(model.as_target(), 256, drafter, tree)
        variables = engine.variables(target=params, drafter=drafter_params)
        out = jax.jit(engine.generate)(
            variables, labels, sampling=Sampling.create(cfg_scale=2.0), keys=key
        )
    """

    def variables(
        self,
        target: Params,
        drafter: Params = None,
        verifier: Params = None,
        related_tokens: Int[Array, "V M"] | None = None,
    ) -> Variables:
        """Collects the arrays of a generation in one pytree.

        Args:
          target: parameters of the target.
          drafter: parameters of the drafter, as it is trained and saved. Those of the
            target that the drafter reads are added here, unless they have been already
            (`with_target_params`, `LoadedDrafter.params`).
          verifier: arrays that the verifier reads.
          related_tokens: tokens whose log-probabilities are recorded beside that of
            each token of the vocabulary.

        Raises:
          ConfigError: `related_tokens` is not int [V, M], or nothing is recorded; or
            parameters are missing or exchanged.
        """
        if related_tokens is not None:
            self._check_related(related_tokens)
        drafter = join_drafter_params(self.drafter, drafter, target)
        return Variables(target, drafter, verifier, related_tokens)

    def init(
        self,
        variables: Variables,
        prompt: PyTree,
        *,
        sampling: Sampling,
        keys: BatchKeys | Key[Array, ""],
        stopping: StoppingCriteria | None = None,
        room: int | None = None,
    ) -> SpecState:
        """State after the first token of each sequence, see `init_state`."""
        return init_state(self, variables, prompt, sampling, keys, stopping, room)

    def step(self, variables: Variables, state: SpecState) -> SpecState:
        """State after one round: `commit(verify(draft(state)))`. Donate `state`."""
        drafted = draft(self, variables, state)
        verified = verify(self, variables, state, drafted)
        return commit(self, variables, state, drafted, verified)

    def done(self, state: SpecState) -> Bool[Array, "B"]:
        """Mask of the sequences that have ended."""
        return state.done

    def result(self, state: SpecState) -> Generation:
        """New tokens so far, without given ones; -1 beyond the length of a sequence."""
        first, length = state.prefix_length, state.new_length
        new = slice(first, first + self.max_new_tokens)
        beyond = jnp.arange(self.max_new_tokens)[None] >= length[:, None]
        log_probs: LogProbs | None = state.log_probs and jax.tree.map(
            lambda x: jnp.where(
                beyond.reshape(*beyond.shape, *(1,) * (x.ndim - 2)), 0.0, x[:, new]
            ),
            state.log_probs,
        )
        return Generation(
            tokens=jnp.where(beyond, -1, state.tokens[:, new]),
            lengths=length,
            stats=state.stats,
            finite=state.finite,
            log_probs=log_probs,
        )

    def generate(
        self,
        variables: Variables,
        prompt: PyTree,
        *,
        sampling: Sampling,
        keys: BatchKeys | Key[Array, ""],
        stopping: StoppingCriteria | None = None,
    ) -> Generation:
        """Generates all sequences in one program; call it under `jit`.

        Args:
          variables: arrays of the batch, see `variables`.
          prompt: prompts as `Target.prefill` takes them, `B` sequences, or a `Prefixed`
            of them, whose tokens are continued.
          sampling: sampling settings, of all sequences or of each.
          keys: typed keys [B], or one key, from which `batch_keys` derives them. Equal
            key, prompt and settings give equal tokens in any batch.
          stopping: stopping criteria; by default `max_new_tokens`.

        Raises:
          ConfigError: keys are raw or not one per sequence, arguments have different
            numbers of sequences or are of another kind, or the cache has another layout
            than `Target.move` expects.
        """

        def step(state: SpecState) -> SpecState:
            return self.step(variables, state)

        ends = [
            self.max_new_tokens * (i + 1) // self.cache_stages
            for i in range(self.cache_stages)
        ]
        room = ends[0]
        state = self.init(
            variables,
            prompt,
            sampling=sampling,
            keys=keys,
            stopping=stopping,
            room=room,
        )
        for end in ends:
            state = replace(state, cache=extend_cache(state.cache, end - room))
            state = jax.lax.while_loop(self._has_room(end), step, state)
            room = end
        return self.result(state)

    def _check_related(self, tokens: Int[Array, "V M"]) -> None:
        vocabulary = self.target.vocab_size
        if self.log_probs is None:
            raise ConfigError(
                "related_tokens are recorded with Engine(log_probs='model' or "
                "'sampling') only"
            )
        integers = jnp.issubdtype(jnp.result_type(tokens), jnp.integer)
        if not integers or jnp.ndim(tokens) != 2 or len(tokens) != vocabulary:
            raise ConfigError(
                f"related_tokens have shape {jnp.shape(tokens)}; give ints [V, M] with "
                f"V={vocabulary}"
            )

    def _has_room(self, end: int):
        """Condition of the loop that generates the tokens before `end`."""

        def condition(state: SpecState) -> Bool[Array, ""]:
            going = any_group(jnp.any(~state.done))
            if end == self.max_new_tokens:
                return going
            # Finished sequences write to the cache as well, and all groups must agree.
            return going & ~any_group(jnp.any(state.new_length > end))

        return condition
