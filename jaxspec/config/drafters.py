"""Frozen configurations of drafters."""

from dataclasses import dataclass
from typing import Literal

from jaxspec.config.checks import even_heads, grouped_heads, number, positive, require
from jaxspec.config.models import RopeScaling


@dataclass(frozen=True)
class DFlashConfig:
    """A one-pass block drafter on target features (DFlash, arXiv 2602.06036).

    Attributes:
      block_size: rows of the block, `G`: one anchor and `G - 1` masks. Row `i`
        predicts the token `i + 1` places after the anchor (as in DSpark, arXiv
        2607.05147), so a block drafts `G` tokens.
      layers: drafter layers.
      width: `D`, equal to the target's, whose embedding and head are shared.
      heads: query heads.
      kv_heads: key/value heads; None means `heads`.
      head_dim: `F`; None means `width // heads`.
      ffn_width: SwiGLU width.
      norm_eps: epsilon of every RMSNorm.
      feature_layers: target layers whose outputs are read (0 is the first layer's
        output).
      causal: rows of the block see only earlier rows (JetSpec, arXiv 2606.18394);
        otherwise all rows see each other (DFlash).
      markov_rank: rank of the bias that the previous token puts on the next one's
        logits (DSpark); 0 for none.
      refinements: passes in which the rows also read the tokens that the pass before
        drafted under the noise of their positions; 0 for none. Ours; needs `causal`.
      confidence: a head predicts how likely a row's guess is to be accepted, from the
        row and the token before (DSpark); `ConfidenceCutoff("head")` reads it.
      window: block rows see so many committed positions at most; 0 for all.
      same_place: row `i` predicts the token in its own place, `i` after the anchor, so
        that a block drafts `G - 1` tokens and the anchor's row none (DFlash as
        released); otherwise the one behind it.
      above: each row also reads the three tokens of the image's row above that are
        nearest to the one it predicts. Ours; for images.
    """

    block_size: int = 8
    layers: int = 3
    width: int = 768
    heads: int = 12
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn_width: int = 2048
    norm_eps: float = 1e-6
    feature_layers: tuple[int, ...] = (1, 5, 9)
    causal: bool = True
    markov_rank: int = 256
    refinements: int = 0
    confidence: bool = False
    window: int = 0
    same_place: bool = False
    above: bool = False

    def __post_init__(self):
        positive(self, "block_size", "layers", "width", "heads", "num_kv_heads")
        positive(self, "ffn_width")
        require(
            self.refinements == 0 or (self.refinements > 0 and self.causal),
            f"refinements={self.refinements} need causal=True, and at least 0",
        )
        require(self.markov_rank >= 0, "markov_rank must not be negative")
        require(self.window >= 0, "window must not be negative")
        require(
            not self.same_place
            or (self.block_size > 1 and not self.refinements and not self.above),
            "same_place needs a block of two, no refinements and above=False",
        )
        grouped_heads(self.heads, self.num_kv_heads)
        require(
            len(self.feature_layers) >= 1,
            "feature layers must name at least one target layer",
        )
        even_heads(self.heads, self.heads * (self.head_dim or 0) or self.width)

    @property
    def num_kv_heads(self) -> int:
        """`K`."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_size(self) -> int:
        """`F`."""
        return self.head_dim or self.width // self.heads


@dataclass(frozen=True)
class EagleConfig:
    """A one-layer drafter on target features (EAGLE).

    Attributes:
      version: 1 (EAGLE-1, arXiv 2401.15077: features after the target's final norm, no
        norm before the attention) or 3 (EAGLE-3, arXiv 2503.01840: features of several
        layers, norms, an own output norm).
      width: `D`, equal to the target's, whose embedding is shared; version 3 may have
        another with an embedding and a `draft_vocab` of its own.
      heads: query heads.
      kv_heads: key/value heads; None means `heads`.
      head_dim: `F`; None means `width // heads`.
      ffn_width: SwiGLU width.
      norm_eps: epsilon of every RMSNorm.
      feature_layers: target layers whose outputs are read (0 is the first layer's
        output); for version 1 the last one. EAGLE-3's released heads name layers by
        their inputs, which is one more.
      draft_vocab: tokens of an own output head (version 3); 0 shares the target's.
      norm_before_residual: the residual of version 3 is the normed feature.
      qkv_bias: biases in the query, key and value maps (Qwen2's heads).
      rope_base: of rotary frequencies of the head's own, along the sequence; None: it
        turns as the target does.
      rope_scaling: of those frequencies.
      own_embedding: tokens are read through a table `[V, D]` of the head's own; else
        through the target's.
      input_norm: version 1 with an RMSNorm before its attention (LANTERN's heads for
        Anole and Lumina-mGPT).
      qk_layer_norm: LayerNorm over the heads of queries and keys, as in Chameleon.
      embedding_scale: embeddings of tokens are multiplied by it (Lumina-mGPT).
      caption_padding: what padded positions of a caption attend to in the target whose
        features this head was trained on; see `make_target`.
    """

    version: Literal[1, 3] = 1
    width: int = 1280
    heads: int = 20
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn_width: int = 3584
    norm_eps: float = 1e-6
    feature_layers: tuple[int, ...] = (35,)
    draft_vocab: int = 0
    norm_before_residual: bool = False
    qkv_bias: bool = False
    rope_base: float | None = None
    rope_scaling: RopeScaling | None = None
    own_embedding: bool = False
    input_norm: bool = False
    qk_layer_norm: bool = False
    embedding_scale: float = 1.0
    caption_padding: Literal["self", "published"] = "self"

    def __post_init__(self):
        positive(self, "width", "heads", "num_kv_heads", "ffn_width")
        number(self, "above 0", lambda x: x > 0, "embedding_scale")
        require(
            self.version == 1 or not self.input_norm,
            "input_norm is for version 1; version 3 has its own norms",
        )
        require(
            self.caption_padding in ("self", "published"),
            f"caption_padding={self.caption_padding!r}; use 'self' or 'published'",
        )
        require(self.draft_vocab >= 0, "draft_vocab must not be negative")
        require(
            self.version == 3 or not self.draft_vocab,
            "version 1 shares the target's head; draft_vocab is for version 3",
        )
        grouped_heads(self.heads, self.num_kv_heads)
        require(
            len(self.feature_layers) >= 1,
            "feature layers must name at least one target layer",
        )
        even_heads(self.heads, self.heads * (self.head_dim or 0) or self.width)

    @property
    def num_kv_heads(self) -> int:
        """`K`."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_size(self) -> int:
        """`F`."""
        return self.head_dim or self.width // self.heads


@dataclass(frozen=True)
class MedusaConfig:
    """Heads that each guess one place ahead (Medusa, Hydra).

    Attributes:
      heads: places ahead.
      width: `D`, equal to the target's.
      blocks: residual blocks of each head.
      sequential: heads read the tokens drafted before them (Hydra, arXiv 2402.05109);
        otherwise the feature alone (Medusa, arXiv 2401.10774).
      own_output: each head has an output map `[D, V]` of its own, as published; else
        all share the target's, which costs `V D` parameters less a head.
      output_bias: those own maps have biases (released Hydra).
      narrow_bias: the map that narrows Hydra's first block has a bias (released).
      prefix_heads: attention heads of a decoder layer before the heads (Hydra++); 0 for
        none.
      prefix_ffn_width: SwiGLU width of that layer.
      prefix_out_norm: a norm stands behind that layer (released Hydra++).
      norm_eps: epsilon of its norms.
    """

    heads: int = 4
    width: int = 768
    blocks: int = 1
    sequential: bool = False
    own_output: bool = False
    output_bias: bool = False
    narrow_bias: bool = False
    prefix_heads: int = 0
    prefix_ffn_width: int = 2048
    prefix_out_norm: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self):
        positive(self, "heads", "width", "blocks", "prefix_ffn_width")
        require(self.own_output or not self.output_bias, "output_bias needs own_output")
        step = 4 * max(self.prefix_heads, 1)
        require(
            self.prefix_heads >= 0 and self.width % step == 0,
            f"prefix_heads={self.prefix_heads} must divide width={self.width} into "
            "head sizes that are multiples of 4",
        )


@dataclass(frozen=True)
class FalconConfig:
    """A feature drafter that guesses several places at once (Falcon, arXiv 2412.12639).

    Attributes:
      block: places a pass, `G`; 2 in the paper.
      width: `D`, equal to the target's.
      heads: query heads.
      ffn_width: SwiGLU width.
      norm_eps: epsilon of its norm.
    """

    block: int = 2
    width: int = 1280
    heads: int = 20
    ffn_width: int = 3584
    norm_eps: float = 1e-6

    def __post_init__(self):
        positive(self, "block", "width", "heads", "ffn_width")
        even_heads(self.heads, self.width)

    @property
    def head_size(self) -> int:
        """`F`."""
        return self.width // self.heads


@dataclass(frozen=True)
class KangarooConfig:
    """An adapter over a target's first layers (Kangaroo, arXiv 2404.18911).

    Attributes:
      layers: of the target, below the adapter; 2 in the paper.
      heads: of the adapter's attention.
      norm_eps: epsilon of its norms.
    """

    layers: int = 2
    heads: int = 12
    norm_eps: float = 1e-6

    def __post_init__(self):
        positive(self, "layers", "heads")


@dataclass(frozen=True)
class PPDConfig:
    """Trained tokens behind every node of a tree (PPD, arXiv 2405.18628).

    Attributes:
      count: of them; 3 in the paper.
    """

    count: int = 3

    def __post_init__(self):
        positive(self, "count")
