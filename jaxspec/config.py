"""Frozen model configurations and their JSON form."""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from jaxspec.errors import ConfigError

T = TypeVar("T")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _positive(config: Any, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value >= 1, f"{name}={value} must be at least 1")


@dataclass(frozen=True)
class TokenizerConfig:
    """A VQ tokenizer of the LlamaGen family (arXiv 2406.06525, section 2.1).

    Attributes:
      image_size: side of a square picture in pixels.
      patch_size: pixels folded into channels before the first convolution (1 in
        LlamaGen; small presets fold more so that all work is at the code grid).
      channels: width of the first level.
      multipliers: width of each level as a multiple of `channels`; each level but
        the last halves the side.
      encoder_blocks: residual blocks a level in the encoder.
      decoder_blocks: residual blocks a level in the decoder.
      attention: "lowest" puts attention after each block of the lowest level and in
        the middle (LlamaGen); "middle" only in the middle.
      groups: groups of every GroupNorm.
      latent_channels: channels between the networks and the quantiser's 1x1 maps.
      codebook_size: number of codes, `V`.
      code_dim: width of a code.
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

    def __post_init__(self):
        _positive(self, "patch_size", "channels", "groups", "latent_channels")
        _positive(self, "codebook_size", "code_dim", "encoder_blocks", "decoder_blocks")
        _require(len(self.multipliers) >= 1, "multipliers must name at least one level")
        step = self.downsampling
        _require(
            self.image_size % step == 0,
            f"image_size={self.image_size} must be a multiple of {step} "
            "(patch_size x 2 per level after the first)",
        )
        for m in self.multipliers:
            _require(
                self.channels * m % self.groups == 0,
                f"groups={self.groups} must divide every level's width "
                f"({self.channels} x {m})",
            )

    @property
    def downsampling(self) -> int:
        """Pixels a code covers along each side."""
        return self.patch_size * 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> int:
        """Codes along each side of a picture."""
        return self.image_size // self.downsampling


@dataclass(frozen=True)
class TransformerConfig:
    """An autoregressive decoder over codes or text.

    The defaults are LlamaGen's (arXiv 2406.06525): 2-D rotary embedding over a square
    grid, SwiGLU, RMSNorm, no biases, an untied head.

    Attributes:
      vocab_size: `V`.
      layers: `L`.
      width: `D`.
      heads: query heads `H`.
      kv_heads: key/value heads `K`; None means `heads`.
      head_dim: `F`; None means `width // heads`.
      ffn_multiple: the SwiGLU width is `int(8 width / 3)` rounded up to this.
      ffn_width: overrides the rule above.
      norm_eps: epsilon of every RMSNorm.
      rope: "grid" (2-D, interleaved pairs, zero rows for the condition) or
        "sequence" (1-D, interleaved pairs).
      rope_base: base of the rotary frequencies.
      grid: codes along each side ("grid"); the sequence has `grid ** 2` of them.
      max_length: longest sequence for `rope="sequence"`.
      condition: "class" (one learned prefix token a class), "caption" (a prefix of
        `caption_length` text features) or "none".
      classes: number of classes; id `classes` is the null class of guidance.
      caption_length: prefix tokens of a caption.
      caption_width: width of the text features.
      qkv_bias: biases in the query, key and value maps (Qwen2).
      qk_norm: RMSNorm over the heads of queries and keys (Qwen3).
      tied_head: the output head is the transposed token embedding.
      extra_tokens: rows of the embedding beyond the vocabulary, for tokens that are
        read and never drawn: masks, prompt tokens of a drafter.
      token_dropout: dropout after the embedding, training only.
      residual_dropout: dropout of each attention output, training only.
      ffn_dropout: dropout of each SwiGLU output, training only.
      condition_dropout: chance of the null condition, training only.
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
    grid: int = 16
    max_length: int = 2048
    condition: Literal["class", "caption", "none"] = "class"
    classes: int = 1000
    caption_length: int = 120
    caption_width: int = 2048
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_head: bool = False
    extra_tokens: int = 0
    token_dropout: float = 0.1
    residual_dropout: float = 0.1
    ffn_dropout: float = 0.1
    condition_dropout: float = 0.1

    def __post_init__(self):
        _positive(self, "vocab_size", "layers", "width", "heads", "num_kv_heads")
        _positive(self, "ffn_multiple", "grid", "max_length", "classes")
        _require(self.extra_tokens >= 0, "extra_tokens must not be negative")
        _require(
            self.head_dim is not None or self.width % self.heads == 0,
            f"heads={self.heads} must divide width={self.width}, or set head_dim",
        )
        _require(
            self.heads % self.num_kv_heads == 0,
            f"kv_heads={self.num_kv_heads} must divide heads={self.heads}",
        )
        step = 4 if self.rope == "grid" else 2
        _require(
            self.head_size % step == 0,
            f"the head size {self.head_size} must be a multiple of {step} for "
            f"rope={self.rope!r}",
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
        """Condition positions before the first token."""
        return {"class": 1, "caption": self.caption_length, "none": 0}[self.condition]

    @property
    def sequence_length(self) -> int:
        """Most tokens after the condition."""
        return self.grid**2 if self.rope == "grid" else self.max_length


@dataclass(frozen=True)
class BlockDiffusionConfig:
    """A one-pass block drafter on target features (DFlash, arXiv 2602.06036).

    Attributes:
      block_size: rows of the block, `G`: one anchor and `G - 1` masks. Row `i`
        predicts the token `i + 1` places after the anchor (as in DSpark, arXiv
        2607.05147), so a block drafts `G` tokens.
      layers: drafter layers.
      width: `D`, equal to the target's, whose embedding and head are shared.
      heads: query heads.
      kv_heads: key/value heads; None means `heads`.
      ffn_width: SwiGLU width.
      norm_eps: epsilon of every RMSNorm.
      taps: target layers whose outputs are read (0 is the first layer's output).
      causal: rows of the block see only earlier rows (JetSpec, arXiv 2606.18394);
        otherwise all rows see each other (DFlash).
      markov_rank: rank of the bias that the previous token puts on the next one's
        logits (DSpark); 0 for none.
      refinements: passes in which the rows also read the tokens that the pass before
        drafted under the noise of their positions; 0 for none. Ours; needs `causal`.
      confidence: a head predicts how likely a row's guess is to be accepted, from the
        row and the token before (DSpark); `ConfidenceCutoff("head")` reads it.
      window: block rows see so many committed positions at most; 0 for all.
      above: each row also reads the three tokens of the picture's row above that are
        nearest to the one it predicts. Ours; for pictures.
    """

    block_size: int = 8
    layers: int = 3
    width: int = 768
    heads: int = 12
    kv_heads: int | None = None
    ffn_width: int = 2048
    norm_eps: float = 1e-6
    taps: tuple[int, ...] = (1, 5, 9)
    causal: bool = True
    markov_rank: int = 256
    refinements: int = 0
    confidence: bool = False
    window: int = 0
    above: bool = False

    def __post_init__(self):
        _positive(self, "block_size", "layers", "width", "heads", "num_kv_heads")
        _positive(self, "ffn_width")
        _require(
            self.refinements == 0 or (self.refinements > 0 and self.causal),
            f"refinements={self.refinements} need causal=True, and at least 0",
        )
        _require(self.markov_rank >= 0, "markov_rank must not be negative")
        _require(self.window >= 0, "window must not be negative")
        _require(
            self.heads % self.num_kv_heads == 0,
            f"kv_heads={self.num_kv_heads} must divide heads={self.heads}",
        )
        _require(len(self.taps) >= 1, "taps must name at least one target layer")
        _require(
            self.width % self.heads == 0 and (self.width // self.heads) % 4 == 0,
            f"heads={self.heads} must divide width={self.width} into head sizes that "
            "are multiples of 4",
        )

    @property
    def num_kv_heads(self) -> int:
        """`K`."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_size(self) -> int:
        """`F`."""
        return self.width // self.heads


@dataclass(frozen=True)
class FeatureHeadConfig:
    """A one-layer drafter on target features (EAGLE).

    Attributes:
      version: 1 (EAGLE-1, arXiv 2401.15077: features after the target's final norm, no
        norm before the attention) or 3 (EAGLE-3, arXiv 2503.01840: features of several
        layers, norms, an own output norm).
      width: `D`, equal to the target's, whose embedding is shared.
      heads: query heads.
      kv_heads: key/value heads; None means `heads`.
      ffn_width: SwiGLU width.
      norm_eps: epsilon of every RMSNorm.
      taps: target layers whose outputs are read (0 is the first layer's output); for
        version 1 the last one. EAGLE-3's released heads name layers by their inputs,
        which is one more.
      draft_vocab: tokens of an own output head (version 3); 0 shares the target's.
    """

    version: Literal[1, 3] = 1
    width: int = 1280
    heads: int = 20
    kv_heads: int | None = None
    ffn_width: int = 3584
    norm_eps: float = 1e-6
    taps: tuple[int, ...] = (35,)
    draft_vocab: int = 0

    def __post_init__(self):
        _positive(self, "width", "heads", "num_kv_heads", "ffn_width")
        _require(self.draft_vocab >= 0, "draft_vocab must not be negative")
        _require(
            self.version == 3 or not self.draft_vocab,
            "version 1 shares the target's head; draft_vocab is for version 3",
        )
        _require(
            self.heads % self.num_kv_heads == 0,
            f"kv_heads={self.num_kv_heads} must divide heads={self.heads}",
        )
        _require(len(self.taps) >= 1, "taps must name at least one target layer")
        _require(
            self.width % self.heads == 0 and (self.width // self.heads) % 4 == 0,
            f"heads={self.heads} must divide width={self.width} into head sizes that "
            "are multiples of 4",
        )

    @property
    def num_kv_heads(self) -> int:
        """`K`."""
        return self.heads if self.kv_heads is None else self.kv_heads

    @property
    def head_size(self) -> int:
        """`F`."""
        return self.width // self.heads


@dataclass(frozen=True)
class ParallelHeadsConfig:
    """Heads that each guess one place ahead (Medusa, Hydra).

    Attributes:
      heads: places ahead.
      width: `D`, equal to the target's.
      blocks: residual blocks of each head.
      sequential: heads read the tokens drafted before them (Hydra, arXiv 2402.05109);
        otherwise the feature alone (Medusa, arXiv 2401.10774).
      own_output: each head has an output map `[D, V]` of its own, as published; else
        all share the target's, which costs `V D` parameters less a head.
      prefix_heads: attention heads of a decoder layer before the heads (Hydra++); 0 for
        none.
      prefix_ffn_width: SwiGLU width of that layer.
      norm_eps: epsilon of its norms.
    """

    heads: int = 4
    width: int = 768
    blocks: int = 1
    sequential: bool = False
    own_output: bool = False
    prefix_heads: int = 0
    prefix_ffn_width: int = 2048
    norm_eps: float = 1e-6

    def __post_init__(self):
        _positive(self, "heads", "width", "blocks", "prefix_ffn_width")
        step = 4 * max(self.prefix_heads, 1)
        _require(
            self.prefix_heads >= 0 and self.width % step == 0,
            f"prefix_heads={self.prefix_heads} must divide width={self.width} into "
            "head sizes that are multiples of 4",
        )


@dataclass(frozen=True)
class SemiAutoregressiveConfig:
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
        _positive(self, "block", "width", "heads", "ffn_width")
        _require(
            self.width % self.heads == 0 and self.width // self.heads % 4 == 0,
            f"heads={self.heads} must divide width={self.width} into head sizes that "
            "are multiples of 4",
        )

    @property
    def head_size(self) -> int:
        """`F`."""
        return self.width // self.heads


@dataclass(frozen=True)
class AdapterConfig:
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
        _positive(self, "layers", "heads")


@dataclass(frozen=True)
class PromptTokensConfig:
    """Trained tokens behind every node of a tree (PPD, arXiv 2405.18628).

    Attributes:
      count: of them; 3 in the paper.
    """

    count: int = 3

    def __post_init__(self):
        _positive(self, "count")


def to_dict(config: Any) -> dict[str, Any]:
    """Turns a frozen configuration into plain JSON types (tuples become lists)."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(cls: type[T], values: dict[str, Any]) -> T:
    """Builds the frozen dataclass `cls` from `to_dict`'s form.

    Raises:
      ConfigError: a field is unknown, or its value has the wrong type.
    """
    hints = typing.get_type_hints(cls)
    if not isinstance(values, dict):
        raise ConfigError(f"{cls.__name__}: expected an object, got {values!r}")
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(
            f"{cls.__name__}: unknown field(s) {', '.join(unknown)}; "
            f"known: {', '.join(sorted(hints))}"
        )
    return cls(**{k: _coerce(cls, k, hints[k], v) for k, v in values.items()})


def _coerce(cls: type, name: str, hint: Any, value: Any) -> Any:
    """Checks one field against its annotation; lists become tuples."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        for option in args:
            try:
                return _coerce(cls, name, option, value)
            except ConfigError:
                continue
    elif origin is Literal:
        if value in args:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_coerce(cls, name, args[0], v) for v in value)
    elif dataclasses.is_dataclass(hint):
        if isinstance(hint, type) and isinstance(value, dict):
            return from_dict(hint, value)
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif hint is int and isinstance(value, bool):
        pass
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    elif hint is Any:
        return value
    raise ConfigError(f"{cls.__name__}.{name}: {value!r} is not a valid {hint}")
