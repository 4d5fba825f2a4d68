"""Static settings of speculative generation."""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxspec.core.kv_cache import gather_path
from jaxspec.core.numbers import whole, within
from jaxspec.core.sampling import LLAMAGEN_ORDER, Step
from jaxspec.errors import ConfigError
from jaxspec.speculative.draft import Drafter, Selection, num_extra_queries
from jaxspec.speculative.input_checks import as_tree, check_parts
from jaxspec.speculative.target import Target
from jaxspec.speculative.trees.dynamic import DynamicTree
from jaxspec.speculative.trees.tree import Tree
from jaxspec.speculative.verify import Coupled, Verifier


@dataclass(frozen=True)
class EngineConfig:
    """Everything static about a generation; hashable.

    Attributes:
      target: model whose generation is accelerated. With a drafter that has
        `feature_layers`, it is replaced by `Target.for_drafter(drafter)`.
      max_new_tokens: number of tokens to generate for each sequence, without those that
        a `Prefixed` prompt gives.
      drafter: drafter; None for plain decoding, one token per call.
      tree: draft tree, or the bound of dynamic trees, or a name for `parse_tree`;
        without a drafter, the root only.
      verifier: verifier, which decides which drafted tokens are accepted.
      order: logits processors, in order; see `core.logits.process_logits`.
      tie_margin: largest difference, doubled, between the logits of two passes of
        different widths. A decision that such a difference could change (guidance and
        temperature enlarge it, see `core.logit_bounds`) is repeated with the logits of
        `Target.rescore`, which has a fixed shape: then every tree, drafter and batch
        yields the same tokens. 0 disables this.
      selection: selection of candidates by the drafter; None for that of the verifier.
      cache_stages: number of cache sizes that `Engine.generate` goes through. Each
        stage adds an equal share of the tokens, so that passes do not read slots that
        are filled later. It pays for large batches whose attention reads the whole
        cache ("xla"); the loop is compiled once per stage.
      log_probs: distribution whose log-probabilities of the generated tokens are
        recorded: that of the model after guidance ("model"), or the one that is sampled
        from, after temperature and filters ("sampling"). None records nothing.

    Raises:
      ConfigError: a number is out of range, a draft tree has no drafter, or a tree,
        verifier, selection or step of the order is none.
    """

    target: Target
    max_new_tokens: int
    drafter: Drafter | None = None
    tree: Tree | DynamicTree = Tree.root()
    verifier: Verifier = Coupled()
    order: tuple[Step, ...] = LLAMAGEN_ORDER
    tie_margin: float = 5e-4
    selection: Selection | None = None
    cache_stages: int = 1
    log_probs: Literal["model", "sampling"] | None = None

    def __post_init__(self):
        check_parts(self.target, self.drafter, self.verifier)
        object.__setattr__(self, "tree", as_tree(self.tree, self.drafter))
        tokens = int(whole("max_new_tokens", self.max_new_tokens))
        object.__setattr__(self, "max_new_tokens", tokens)
        if self.drafter is None and self.tree.size != 1:
            raise ConfigError("a draft tree needs a drafter; pass drafter=...")
        if not 1 <= self.cache_stages <= self.max_new_tokens:
            raise ConfigError(
                f"cache_stages={self.cache_stages} must be 1 to "
                f"max_new_tokens={self.max_new_tokens}"
            )
        if self.cache_stages > 1 and self.target.move is not gather_path:
            raise ConfigError(
                f"cache_stages={self.cache_stages} lengthens caches of the default "
                "`move` only; a target with another attention, or a `move` of its own "
                "needs cache_stages=1"
            )
        if self.log_probs not in (None, "model", "sampling"):
            raise ConfigError(
                f"log_probs={self.log_probs!r}; choose 'model', 'sampling' or None"
            )
        if unknown := [step for step in self.order if step not in LLAMAGEN_ORDER]:
            raise ConfigError(
                f"order has the step {unknown[0]!r}; choose among "
                f"{', '.join(LLAMAGEN_ORDER)}"
            )
        if self.selection not in (None, *get_args(Selection)):
            raise ConfigError(
                f"selection={self.selection!r}; choose one of "
                f"{', '.join(get_args(Selection))}, or None"
            )
        within("tie_margin", self.tie_margin)
        if self.target.for_drafter and hasattr(self.drafter, "feature_layers"):
            target = self.target.for_drafter(self.drafter)
            object.__setattr__(self, "target", target)

    @property
    def path_length(self) -> int:
        """Length of a path from the root, `A`."""
        return self.tree.depth + 1

    @property
    def window(self) -> int:
        """Queries of one verify pass: the nodes of the tree and extra queries."""
        return self.tree.size + num_extra_queries(self.drafter, self.tree)

    @property
    def candidates(self) -> Selection:
        """Selection of candidates by the drafter."""
        return self.selection or self.verifier.selection
