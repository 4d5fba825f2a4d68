"""Frozen configurations of tokenizers, transformers and text encoders."""

import math
from dataclasses import dataclass
from typing import Literal

from jaxspec.config.checks import grouped_heads, positive, require
from jaxspec.config.orders import Order, check_order


@dataclass(frozen=True)
class TokenizerConfig:
    """A VQ tokenizer of the LlamaGen family (arXiv 2406.06525, section 2.1).

    Attributes:
      image_size: side of a square image in pixels.
      patch_size: side in pixels of the patches folded into channels before the first
        convolution (1 in LlamaGen; small presets fold more, so that all layers run at
        the token grid's resolution).
      channels: width of the first level.
      multipliers: width of each level as a multiple of `channels`; each level but
        the last halves the side.
      encoder_blocks: residual blocks per level in the encoder.
      decoder_blocks: residual blocks per level in the decoder.
      attention: "lowest" puts attention after each block of the lowest level and in
        the middle (LlamaGen); "middle" only in the middle.
      groups: number of groups of every GroupNorm.
      latent_channels: channels between the networks and the quantizer's 1x1 maps.
      codebook_size: number of codebook entries, `V`.
      code_dim: width of a codebook entry, `C`.
      normalized: use of codebook entries scaled to unit length: for encoding and
        decoding ("both", LlamaGen), for decoding only ("decoding", Janus), or never
        ("none", VQGAN, Chameleon).
      quantizer: "vq": the nearest entry of a learned codebook. "fsq" (arXiv
        2309.15505): each channel is rounded to one of its `levels`. "lfq" (arXiv
        2310.05737): each is its sign. "bits" (BAE, arXiv 2410.16257): each is a
        probability, and the bit that is likelier. The last three have a fixed codebook
        and `normalized="none"`.
      levels: number of values of each channel, for "fsq".
      order: order of the tokens of an image, see `config.orders`.
    """

    image_size: int = 256
    patch_size: int = 1
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    attention: Literal["lowest", "middle"] = "lowest"
    groups: int = 32
    latent_channels: int = 256
    codebook_size: int = 16384
    code_dim: int = 8
    normalized: Literal["both", "decoding", "none"] = "both"
    quantizer: Literal["vq", "fsq", "lfq", "bits"] = "vq"
    levels: tuple[int, ...] = ()
    order: Order = "raster"

    def __post_init__(self):
        check_order(self.order)
        positive(self, "patch_size", "channels", "groups", "latent_channels")
        positive(self, "codebook_size", "code_dim", "encoder_blocks", "decoder_blocks")
        require(len(self.multipliers) >= 1, "multipliers must name at least one level")
        step = self.downsampling
        require(
            self.image_size % step == 0,
            f"image_size={self.image_size} must be a multiple of {step} "
            "(patch_size x 2 per level after the first)",
        )
        for m in self.multipliers:
            require(
                self.channels * m % self.groups == 0,
                f"groups={self.groups} must divide every level's width "
                f"({self.channels} x {m})",
            )
        self._check_quantizer()

    def _check_quantizer(self) -> None:
        require(
            self.quantizer == "fsq" or not self.levels,
            f"levels={self.levels} are for quantizer='fsq'",
        )
        if self.quantizer == "vq":
            return
        require(
            all(count >= 2 for count in self.levels),
            f"levels={self.levels}: each channel needs at least 2 values",
        )
        counts = self.levels if self.quantizer == "fsq" else (2,) * self.code_dim
        size = math.prod(counts)
        require(
            (len(counts), size) == (self.code_dim, self.codebook_size),
            f"quantizer={self.quantizer!r} has {size} codes of width {len(counts)}; "
            f"set codebook_size={size} and code_dim={len(counts)}, not "
            f"{self.codebook_size} and {self.code_dim}",
        )
        require(
            self.normalized == "none",
            f"quantizer={self.quantizer!r} needs normalized='none'",
        )

    @property
    def downsampling(self) -> int:
        """Pixels that a token covers along each side."""
        return self.patch_size * 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> int:
        """Tokens along each side of an image."""
        return self.image_size // self.downsampling

    @property
    def length(self) -> int:
        """Number of tokens of an image."""
        return self.grid**2


@dataclass(frozen=True)
class RopeScaling:
    """Scaling of rotary wavelengths for sequences longer than those trained on.

    Attributes:
      kind: "linear" (all wavelengths by the same factor), "llama3" (only long ones,
        with a smooth transition) or "yarn" (arXiv 2309.00071).
      factor: factor of the wavelengths.
      original_length: length of the sequences trained on.
      slow: number of turns over the original length below which a wave is scaled.
      fast: number of turns over the original length above which a wave is not scaled.
      magnitude: factor of cosines and sines (YaRN's attention factor).
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_length: int = 8192
    slow: float = 1.0
    fast: float = 4.0
    magnitude: float = 1.0

    def __post_init__(self):
        positive(self, "factor", "original_length", "magnitude")
        require(0 < self.slow < self.fast, "rope scaling needs 0 < slow < fast")


@dataclass(frozen=True)
class TransformerConfig:
    """An autoregressive decoder over image or text tokens.

    The defaults are LlamaGen's (arXiv 2406.06525): 2-D rotary embedding on a square
    grid, SwiGLU, RMSNorm, no biases, an untied head.

    Attributes:
      vocab_size: `V`.
      layers: `L`.
      width: `D`.
      heads: query heads `H`.
      kv_heads: key/value heads `K`; None means `heads`.
      head_dim: `F`; None means `width // heads`.
      ffn_multiple: the SwiGLU width is `int(8 width / 3)` rounded up to this.
      ffn_width: SwiGLU width itself; None for the one that `ffn_multiple` gives.
      norm_eps: epsilon of every RMSNorm.
      rope: "grid" (2-D, interleaved pairs, zero angles for the condition) or
        "sequence" (1-D, interleaved pairs).
      rope_base: base of the rotary frequencies.
      rope_scaling: scaling of 1-D rotary frequencies; None for none.
      grid: tokens along each side of the image with `rope="grid"`, `grid ** 2` in all.
      order: order of the tokens of a grid, see `config.orders`.
      next_cell: whether each position has a learned embedding of the cell of the token
        that it predicts (RAR, arXiv 2411.00776), so that one model can predict the
        tokens of a grid in any order.
      factors: sizes of the sub-codes of a token, whose product is `V`; empty for none.
        Each has its own embeddings and its own outputs, and the probability of a token
        is the product of those of its sub-codes (BAE; Open-MAGVIT2). The first is the
        most significant.
      max_length: longest sequence with `rope="sequence"`.
      condition: "class" (one learned prefix embedding per class), "caption" (a prefix
        of `caption_length` text features) or "none".
      classes: number of classes; id `classes` is the null class of guidance.
      caption_length: prefix positions of a caption.
      caption_width: width of the text features.
      qkv_bias: biases in the query, key and value maps (Qwen2).
      qk_norm: RMSNorm over the heads of queries and keys (Qwen3).
      qk_layer_norm: LayerNorm over the heads of queries and keys, with separate scales
        and biases per head (Chameleon).
      norm_after: whether both norms of a layer follow its attention and its SwiGLU,
        before the residual is added (Chameleon 34B), instead of preceding them.
      tied_head: whether the output head is the transposed token embedding.
      head_width: hidden width of an output head that is an MLP with biases (Janus); 0
        for a head of one matrix.
      extra_tokens: tokens of the embedding beyond the vocabulary, which are read and
        never generated: masks, prompt tokens of a drafter.
      token_dropout: dropout rate after the embedding, training only.
      residual_dropout: dropout rate of each attention output, training only.
      ffn_dropout: dropout rate of each SwiGLU output, training only.
      condition_dropout: probability of the null condition, training only.
    """

    vocab_size: int = 16384
    layers: int = 12
    width: int = 768
    heads: int = 12
    kv_heads: int | None = None
    head_dim: int | None = None
    ffn_multiple: int = 256
    ffn_width: int | None = None
    norm_eps: float = 1e-5
    rope: Literal["grid", "sequence"] = "grid"
    rope_base: float = 10000.0
    rope_scaling: RopeScaling | None = None
    grid: int = 16
    order: Order = "raster"
    next_cell: bool = False
    factors: tuple[int, ...] = ()
    max_length: int = 2048
    condition: Literal["class", "caption", "none"] = "class"
    classes: int = 1000
    caption_length: int = 120
    caption_width: int = 2048
    qkv_bias: bool = False
    qk_norm: bool = False
    qk_layer_norm: bool = False
    norm_after: bool = False
    tied_head: bool = False
    head_width: int = 0
    extra_tokens: int = 0
    token_dropout: float = 0.1
    residual_dropout: float = 0.1
    ffn_dropout: float = 0.1
    condition_dropout: float = 0.1

    def __post_init__(self):
        positive(self, "vocab_size", "layers", "width", "heads", "num_kv_heads")
        positive(self, "ffn_multiple", "grid", "max_length", "classes")
        require(self.extra_tokens >= 0, "extra_tokens must not be negative")
        require(self.head_width >= 0, "head_width must not be negative")
        require(
            not (self.qk_norm and self.qk_layer_norm),
            "qk_norm and qk_layer_norm exclude each other",
        )
        require(
            not (self.tied_head and self.head_width),
            "a head with a hidden layer is not the embedding: tied_head=False",
        )
        require(
            self.rope_scaling is None or self.rope == "sequence",
            "rope_scaling needs rope='sequence'",
        )
        require(
            self.head_dim is not None or self.width % self.heads == 0,
            f"heads={self.heads} must divide width={self.width}, or set head_dim",
        )
        grouped_heads(self.heads, self.num_kv_heads)
        check_order(self.order)
        require(
            self.rope == "grid" or (self.order == "raster" and not self.next_cell),
            "order and next_cell are about a grid: rope='grid'",
        )
        self._check_factors()
        step = 4 if self.rope == "grid" else 2
        require(
            self.head_size % step == 0,
            f"the head size {self.head_size} must be a multiple of {step} for "
            f"rope={self.rope!r}",
        )

    def _check_factors(self) -> None:
        if not self.factors:
            return
        require(
            min(self.factors) >= 2 and math.prod(self.factors) == self.vocab_size,
            f"factors={self.factors} must be sizes of at least 2 whose product is "
            f"vocab_size={self.vocab_size}",
        )
        require(
            not (self.tied_head or self.head_width or self.extra_tokens),
            "factors exclude tied_head, head_width and extra_tokens",
        )
        require(
            self.width % len(self.factors) == 0,
            f"width={self.width} must be a multiple of the {len(self.factors)} factors",
        )

    @property
    def num_kv_heads(self) -> int:
        """`K`."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_size(self) -> int:
        """`F`."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def ffn_size(self) -> int:
        """Width of the SwiGLU hidden layer."""
        if self.ffn_width is not None:
            return self.ffn_width
        m = self.ffn_multiple
        return -(-int(8 * self.width / 3) // m) * m

    @property
    def prefix_length(self) -> int:
        """Number of condition positions before the first token."""
        return {"class": 1, "caption": self.caption_length, "none": 0}[self.condition]

    @property
    def sequence_length(self) -> int:
        """Largest number of tokens after the condition."""
        return self.grid**2 if self.rope == "grid" else self.max_length


@dataclass(frozen=True)
class TextEncoderConfig:
    """A T5 encoder with gated GELUs; the defaults are Flan-T5-XL's.

    Attributes:
      vocab_size: `V`.
      layers: `L`.
      width: `D`.
      heads: attention heads, `H`.
      head_dim: `F`.
      ffn_width: width of the hidden layers.
      buckets: number of buckets of the relative position bias.
      most_distance: distance in tokens from which on all share the last bucket.
      norm_eps: epsilon of every RMSNorm.
      length: tokens of a caption.
    """

    vocab_size: int = 32128
    layers: int = 24
    width: int = 2048
    heads: int = 32
    head_dim: int = 64
    ffn_width: int = 5120
    buckets: int = 32
    most_distance: int = 128
    norm_eps: float = 1e-6
    length: int = 120

    def __post_init__(self):
        positive(self, "vocab_size", "layers", "width", "heads", "head_dim")
        positive(self, "ffn_width", "length")
        require(self.buckets % 4 == 0, f"buckets={self.buckets} must divide by four")
