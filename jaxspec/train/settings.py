"""Settings of a preset: its data, and the training of each of its parts."""

from dataclasses import dataclass
from typing import Literal, get_args

from jaxspec.config.checks import number, whole
from jaxspec.errors import ConfigError
from jaxspec.train.divergence import Divergence


@dataclass(frozen=True)
class DataConfig:
    """A data set, with the credit and license that model cards repeat.

    Attributes:
      name: data set name that `jaxspec.data.tfds_images` takes; or "text:FILE"
        for a file in the folder of `--manual-dir`, one token per byte; or
        "prompts:FILE" for the target's answers to the lines of a file.
      train_split: tfds split to train on.
      heldout_split: tfds split that selects checkpoints and is measured.
      flips: whether images may be mirrored left to right.
      matcher_split: tfds split on which the matcher is trained; empty for
        `train_split`.
      examples: captions that are generated when none is given; empty for held-out
        ones.
      credit: author and origin.
      license: license of the data and of the weights trained on it.
      caveat: limitation of held-out measurements, as a clause that ends a sentence.
    """

    name: str
    train_split: str = "train"
    heldout_split: str = "test"
    flips: bool = True
    matcher_split: str = ""
    examples: tuple[str, ...] = ()
    credit: str = ""
    license: str = "unknown"
    caveat: str = ""


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of all trainers.

    Attributes:
      steps: optimizer steps.
      batch: examples per step.
      learning_rate: peak of a linear warm-up followed by cosine decay to zero.
      warmup: steps of the warm-up.
      beta2: AdamW's decay rate of the second moment.
      weight_decay: weight decay, on matrices only.
      clip: largest global norm of a gradient.
      ema: decay per step of the averaged weights, which are the result; 0 for the
        weights of the last step.
      compute_dtype: data type of the matrix products, "float32" or "bfloat16".
      optimizer: "adamw", or "muon" (Muon for the matrices of linear layers, AdamW for
        all other parameters), for priors and drafters.
      seed: seed of the order of examples, dropout and the initial weights.
      log_every: steps between lines of metrics.
      evaluate_every: steps between measurements on held-out data.
      save_every: steps between saved states.
      keep: evaluated step whose parameters are the result: "best", the one with the
        lowest held-out loss, or "last".
      rounded: whether the result is rounded to values of bfloat16. It stays float32,
        and its files are half as large.
    """

    steps: int
    batch: int
    learning_rate: float = 1e-3
    warmup: int = 100
    beta2: float = 0.95
    weight_decay: float = 0.05
    clip: float = 1.0
    ema: float = 0.999
    compute_dtype: str = "float32"
    optimizer: Literal["adamw", "muon"] = "adamw"
    seed: int = 0
    log_every: int = 20
    evaluate_every: int = 500
    save_every: int = 500
    keep: Literal["best", "last"] = "best"
    rounded: bool = False

    def __post_init__(self):
        whole(self, 1, "steps", "batch", "log_every", "evaluate_every", "save_every")
        whole(self, 0, "warmup", "seed")
        number(self, "above 0", lambda x: x > 0, "learning_rate", "clip")
        number(self, "of at least 0", lambda x: x >= 0, "weight_decay")
        number(self, "from 0 to below 1", lambda x: 0 <= x < 1, "beta2", "ema")
        if self.compute_dtype not in ("float32", "bfloat16"):
            raise ConfigError(
                f"compute_dtype={self.compute_dtype!r}; choose float32, bfloat16"
            )
        if self.optimizer not in ("adamw", "muon"):
            raise ConfigError(f"optimizer={self.optimizer!r}; choose adamw, muon")
        if self.keep not in ("best", "last"):
            raise ConfigError(f"keep={self.keep!r}; choose best, last")


@dataclass(frozen=True)
class TokenizerTrainingConfig(TrainingConfig):
    """Settings of the tokenizers' trainers.

    Attributes:
      decoder_alone: whether encoder and codebook keep the values that they start from,
        so that images have the same tokens and a prior over these remains valid.
      encoder_alone: whether the encoder alone is trained to find the tokens of decoded
        images again, for watermarks, see `train.index_encoder`.
      swapped_images: share of the images of a batch, rounded up to whole ones, whose
        codes are swapped for similar ones before they are decoded (RobustTok, arXiv
        2503.08354).
      swapped_tokens: share of the codes of such an image that are swapped.
      swap_neighbors: number of nearest codes, of which one is chosen.
      generated_tokens: share of the tokens of each image that a model over them has
        sampled, see `train.post_training`; with `decoder_alone`.
    """

    decoder_alone: bool = False
    encoder_alone: bool = False
    swapped_images: float = 0.0
    swapped_tokens: float = 0.5
    swap_neighbors: int = 10
    generated_tokens: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        shares = "swapped_images", "swapped_tokens", "generated_tokens"
        number(self, "from 0 to 1", lambda x: 0 <= x <= 1, *shares)
        whole(self, 1, "swap_neighbors")


# Kind of data sets that are the target's answers to prompts.
PROMPTS = "prompts"

# Held-out examples on which checkpoints of a part are compared; the tokenizer is
# measured on all of them.
HELDOUT = {"prior": 512, "drafter": 256, "classifier": 2048}

Objective = Literal[
    "next",
    "any_order",
    "sorted",
    "masked",
    "maskgit",
    "distilled",
    "continuation",
    "refinement",
    "tidar",
]


@dataclass(frozen=True)
class PriorTrainingConfig(TrainingConfig):
    """Settings of the trainer of models over tokens; see `train.objectives`.

    Attributes:
      objective: training objective. "next": the next token. "any_order": the next
        token in random orders (RAR), of a model with `next_cell`. "sorted": the next
        token after several numbers of layers (S2D, LayerSkip). "masked": masked tokens
        (MDLM), "maskgit" with MaskGIT's shares and weights. "distilled": what a masked
        model to start from predicts in two of its steps (SDTT). "continuation" and
        "refinement": blocks after a prefix (DEER's two stages). "tidar": next tokens
        and blocks. All but the first three need `extra_tokens`. Of a next-scale model,
        "sorted" trains the last maps with subsets of its layers too (VARiant).
      exits: numbers of layers after which a "sorted" model may exit early; of the
        evenly spaced subsets of a next-scale model.
      full_scales: number of first maps of a "sorted" next-scale model that all layers
        compute.
      block: tokens of a block.
      random_share: share of the sequences of "any_order" that have a random order. RAR
        lowers it from 1 to 0 during a training; a second one with `--start` can have
        another share.
      teacher_steps: steps of the model that a "distilled" one starts from; it needs
        half as many.
      token_noise: largest share of the tokens before that a "next" model reads from
        another sequence of the batch, so that it predicts more from its condition.
    """

    objective: Objective = "next"
    exits: tuple[int, ...] = ()
    full_scales: int | None = None
    block: int = 8
    random_share: float = 1.0
    teacher_steps: int = 16
    token_noise: float = 0.0

    def __post_init__(self):
        super().__post_init__()
        whole(self, 2, "teacher_steps")
        shares = "random_share", "token_noise"
        number(self, "from 0 to 1", lambda x: 0 <= x <= 1, *shares)
        if self.token_noise and self.objective != "next":
            raise ConfigError("token_noise belongs to objective 'next'")
        if self.objective not in get_args(Objective):
            known = ", ".join(get_args(Objective))
            raise ConfigError(f"objective={self.objective!r}; choose {known}")
        if (self.objective == "sorted") != bool(self.exits):
            raise ConfigError("exits belong to objective 'sorted', which needs them")
        if list(self.exits) != sorted(set(self.exits)) or any(
            n < 1 for n in self.exits
        ):
            raise ConfigError(f"exits={self.exits} must rise, from 1 on")
        whole(self, 1, "block")


@dataclass(frozen=True)
class DrafterTrainingConfig(TrainingConfig):
    """Settings of the drafters' trainer.

    Attributes:
      divergence: loss of each prediction; see `train.divergence`.
      decay: decay of the weight `exp(-k / decay)` of prediction `k` of a block.
      max_cfg_scale: upper end of the CFG scales. Above 1, the loss compares drafter and
        target after CFG, with a scale sampled uniformly from [1, max_cfg_scale] for
        each sequence. This trains the error that CFG amplifies (ours).
      self_generated: number of training sequences that the target generates, with the
        CFG scales above; 0 to train on data.
      null_share: share of unconditional sequences if `max_cfg_scale` is 1.
      regression: weight of the loss on features, for drafters with one (EAGLE-1,
        Falcon).
      cached: data type of the feature cache on disk, "float32" or "bfloat16": the
        target's outputs for all sequences are computed once. "no" runs the target in
        each step.
    """

    divergence: Divergence = "forward_kl"
    decay: float = 4.0
    max_cfg_scale: float = 1.0
    self_generated: int = 0
    null_share: float = 0.3
    regression: float = 10.0
    cached: Literal["no", "float32", "bfloat16"] = "no"

    def __post_init__(self):
        super().__post_init__()
        number(self, "above 0", lambda x: x > 0, "decay")
        number(self, "of at least 1", lambda x: x >= 1, "max_cfg_scale")
        number(self, "from 0 to 1", lambda x: 0 <= x <= 1, "null_share")
        number(self, "of at least 0", lambda x: x >= 0, "regression")
        whole(self, 0, "self_generated")
        if self.cached not in ("no", "float32", "bfloat16"):
            raise ConfigError(f"cached={self.cached!r}; choose no, float32, bfloat16")
        if self.divergence not in get_args(Divergence):
            known = ", ".join(get_args(Divergence))
            raise ConfigError(f"divergence={self.divergence!r}; choose {known}")
