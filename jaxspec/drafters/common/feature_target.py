"""Description of a model of one's own, for drafters that read its features."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from jaxspec.config import RopeScaling, TransformerConfig
from jaxspec.config.checks import positive, require
from jaxspec.config.orders import Order, check_order
from jaxspec.errors import ConfigError
from jaxspec.typing import Params


@dataclass(frozen=True)
class FeatureTarget:
    """Sizes of a model of one's own, and the parameters of it that drafters read.

    It takes the place of a `TransformerConfig`: `DFlash(config, target)`. `DFlash`,
    `Eagle`, `Medusa` and `Falcon` accept it; `Kangaroo` and `PPD` run layers of the
    target themselves and need a `TransformerConfig`.

    The drafter reads three arrays of the target's parameters, which it never trains.
    `read_params` selects them from whatever pytree the model has:

    - "embedding" [V, D]: input embedding of each token. All drafters embed tokens with
      it (`Eagle` with `own_embedding` has its own);
    - "head" [D, V]: output matrix from a normalized hidden state to logits, without a
      bias; the transposed embedding if they are tied. `DFlash` and EAGLE-3 normalize
      their own hidden states before it;
    - "norm" [D]: scale of the final RMSNorm before the head, for the drafters that read
      the last layer alone (EAGLE-1, Medusa, Falcon). Leave it out for another norm, and
      let the last layer's features be those after the norm.

    Attributes:
      vocab_size: size of the vocabulary, `V`.
      width: width of the embedding, the head and of each layer's features, `D`.
      layers: number of layers; a drafter's `feature_layers` are numbers below it. The
        model returns the features of these layers concatenated, in order.
      read_params: function from the target's parameters to the arrays above; at the top
        level of a module, so that it is hashable and equal to its copies.
      prefix_length: number of positions before the first token of the vocabulary (a
        class or caption embedding); 0 for prompts of tokens.
      norm_eps: epsilon of the final RMSNorm.
      rope_base: base of the drafter's rotary frequencies, whatever positions the target
        itself uses.
      rope_scaling: scaling of these frequencies with 1-D positions; None for none.
      grid: tokens along each side of an image, for the 2-D rotary embedding of
        LlamaGen; 0 for 1-D positions.
      order: order of the tokens of a grid, see `config.orders`.

    Raises:
      ConfigError: a size is not positive.
    """

    vocab_size: int
    width: int
    layers: int
    read_params: Callable[[Params], Params]
    prefix_length: int = 0
    norm_eps: float = 1e-5
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    grid: int = 0
    order: Order = "raster"

    def __post_init__(self):
        positive(self, "vocab_size", "width", "layers")
        require(self.norm_eps > 0, "norm_eps must be positive")
        require(self.rope_base > 1, "rope_base must be above 1")
        require(self.prefix_length >= 0, "prefix_length must not be negative")
        require(self.grid >= 0, "grid must not be negative")
        check_order(self.order)

    @property
    def rope(self) -> Literal["grid", "sequence"]:
        """Kind of the drafter's rotary embedding."""
        return "grid" if self.grid else "sequence"

    def shared_params(self, params: Params) -> Params:
        """Reads and checks the parameters that drafters share.

        Returns:
          A dict of "embedding", "head" and "norm", which is None if there is none.

        Raises:
          ConfigError: an array is missing or has another shape.
        """
        shared = self.read_params(params)
        v, d = self.vocab_size, self.width
        for name, shape in (("embedding", (v, d)), ("head", (d, v)), ("norm", (d,))):
            array = shared.get(name)
            if array is None and name == "norm":
                continue
            actual = None if array is None else array.shape
            if actual != shape:
                raise ConfigError(
                    f"read_params returned {name!r} of shape {actual}; a target of "
                    f"vocab_size={v} and width={d} has {shape}"
                )
        return {"norm": None, **shared}


# Targets of drafters that read features.
DrafterTarget = TransformerConfig | FeatureTarget


def require_transformer(name: str, target: DrafterTarget) -> None:
    """Checks that a drafter which runs layers of its target can do so.

    Raises:
      ConfigError: the target is a `FeatureTarget`.
    """
    if not isinstance(target, TransformerConfig):
        raise ConfigError(
            f"{name} runs layers of its target, so it needs a TransformerConfig; use "
            "DFlash, Eagle, Medusa or Falcon for a model of your own"
        )
