"""Frozen configurations of drafters."""

from dataclasses import dataclass
from typing import Literal

from jaxspec.config.checks import even_heads, grouped_heads, number, positive, require
from jaxspec.config.models import RopeScaling


@dataclass(frozen=True)
class DFlashConfig:
    """A block-diffusion drafter on target features (DFlash, arXiv 2602.06036).

    Attributes:
      block_size: queries of a block, `G`: one anchor and `G - 1` masks. Query `i`
        predicts the token `i + 1` positions after the anchor (as in DSpark, arXiv
        2607.05147), so a block drafts `G` tokens.
      layers: layers of the drafter.
      width: `D`, equal to the target's, whose embedding and head are shared.
      heads: query heads.
      kv_heads: key/value heads; None means `heads`.
      head_dim: `F`; None means `width // heads`.
      ffn_width: SwiGLU width.
      norm_eps: epsilon of every RMSNorm.
      feature_layers: target layers whose outputs are read (0 is the first layer's
        output).
      causal: whether a block's queries attend only to earlier ones (JetSpec, arXiv
        2606.18394); otherwise they all attend to each other (DFlash).
      markov_rank: rank of the bias that a token adds to the logits of the next token
        (DSpark); 0 for none.
      refinements: additional passes in which the queries also read the tokens that the
        pass before drafted with the noise of their positions; 0 for none. Not in the
        papers; needs `causal`.
      confidence: whether a head predicts the acceptance of a drafted token, from its
        query and the token before (DSpark); `ConfidenceCutoff(source="head")` reads it.
      window: most committed positions that a query attends to; 0 for all.
      same_place: whether query `i` predicts the token at its own position, `i` after
        the anchor, so a block drafts `G - 1` tokens and the anchor's query none (DFlash
        as released); otherwise it predicts the next one.
      above: whether a query also reads the three tokens of the image row above that
        are nearest to the token it predicts. Not in the papers; for images.
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
            f"refinements={self.refinements} must be 0, or at least 1 with causal=True",
        )
        require(self.markov_rank >= 0, "markov_rank must not be negative")
        require(self.window >= 0, "window must not be negative")
        require(
            not self.same_place
            or (self.block_size > 1 and not self.refinements and not self.above),
            "same_place needs block_size >= 2, no refinements and above=False",
        )
        grouped_heads(self.heads, self.num_kv_heads)
        require(
            len(self.feature_layers) >= 1,
            "feature_layers must name at least one target layer",
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
        layers, norms before the attention, its own output norm).
      width: `D`, equal to the target's, whose embedding is shared. Version 3 may have
        another width if it has its own embedding and a `draft_vocab`.
      heads: query heads.
      kv_heads: key/value heads; None means `heads`.
      head_dim: `F`; None means `width // heads`.
      ffn_width: SwiGLU width.
      norm_eps: epsilon of every RMSNorm.
      feature_layers: target layers whose outputs are read (0 is the first layer's
        output); for version 1 the last one. The configurations of EAGLE-3's released
        heads count layer inputs, so their numbers are one higher.
      draft_vocab: tokens of the drafter's own output head (version 3); 0 to share the
        target's head.
      norm_before_residual: whether the residual of version 3 is the normed feature.
      qkv_bias: biases in the query, key and value maps (Qwen2's heads).
      rope_base: base of the drafter's own 1-D rotary frequencies; None to use the
        target's rotary embedding.
      rope_scaling: scaling of the drafter's own rotary frequencies; None for none.
      own_embedding: whether the drafter has its own token embedding `[V, D]`; otherwise
        it shares the target's.
      input_norm: whether version 1 has an RMSNorm before its attention (LANTERN's heads
        for Anole and Lumina-mGPT).
      qk_layer_norm: LayerNorm over the heads of queries and keys, as in Chameleon.
      embedding_scale: factor of the token embeddings (Lumina-mGPT).
      caption_padding: attention of padded caption positions in the target that this
        drafter was trained on; see `Transformer.as_target`.
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
            "feature_layers must name at least one target layer",
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
    """Heads that each predict one of the next tokens (Medusa, Hydra).

    Attributes:
      heads: number of heads: tokens predicted ahead.
      width: `D`, equal to the target's.
      blocks: residual blocks of each head.
      sequential: whether a head reads the tokens drafted before its own (Hydra, arXiv
        2402.05109); otherwise it reads the feature alone (Medusa, arXiv 2401.10774).
      own_output: whether each head has its own output map `[D, V]`, as published;
        otherwise all share the target's, which saves `V D` parameters per head.
      output_bias: whether the heads' own output maps have biases (released Hydra).
      narrow_bias: whether the projection in Hydra's first block has a bias (released).
      prefix_heads: attention heads of the decoder layer before the heads (Hydra++); 0
        for no such layer.
      prefix_ffn_width: SwiGLU width of that layer.
      prefix_out_norm: whether a norm follows that layer (released Hydra++).
      norm_eps: epsilon of that layer's norms.
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
    """A feature-based drafter of several tokens per pass (Falcon, arXiv 2412.12639).

    Attributes:
      block: tokens per pass, `G`; 2 in the paper.
      width: `D`, equal to the target's.
      heads: query heads.
      ffn_width: SwiGLU width.
      norm_eps: epsilon of the RMSNorm.
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
      layers: layers of the target below the adapter; 2 in the paper.
      heads: heads of the adapter's attention.
      norm_eps: epsilon of the adapter's norms.
    """

    layers: int = 2
    heads: int = 12
    norm_eps: float = 1e-6

    def __post_init__(self):
        positive(self, "layers", "heads")


@dataclass(frozen=True)
class PPDConfig:
    """Trained prompt tokens behind every node of a draft tree (PPD, arXiv 2405.18628).

    Attributes:
      count: number of prompt tokens; 3 in the paper.
    """

    count: int = 3

    def __post_init__(self):
        positive(self, "count")
