"""Experiments: the data, models and training settings of a preset in `configs/`."""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from jaxspec.config import (
    KLTokenizerConfig,
    MARConfig,
    MultiScaleTokenizerConfig,
    NextScaleConfig,
    TextEncoderConfig,
    TokenizerConfig,
    TransformerConfig,
)
from jaxspec.config.checks import number, whole
from jaxspec.config.flow import FlowTokenizerConfig
from jaxspec.config.one_d import MaskGITTokenizerConfig, OneDTokenizerConfig
from jaxspec.config.residual import ResidualTokenizerConfig
from jaxspec.config.token_kinds import same_tokens, tokens_of
from jaxspec.drafters.registry import make_drafter
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
    """

    objective: Objective = "next"
    exits: tuple[int, ...] = ()
    full_scales: int | None = None
    block: int = 8
    random_share: float = 1.0
    teacher_steps: int = 16

    def __post_init__(self):
        super().__post_init__()
        whole(self, 2, "teacher_steps")
        number(self, "from 0 to 1", lambda x: 0 <= x <= 1, "random_share")
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


@dataclass(frozen=True)
class Experiment:
    """One preset: a tokenizer, a prior over its tokens, and the prior's drafter.

    Attributes:
      name: name of the preset and its checkpoints.
      data: data set.
      tokenizer: configuration of the image tokenizer; None for text, whose tokens are
        bytes.
      prior: configuration of the prior.
      drafter: configuration of the prior's drafter; None where the prior itself is
        trained to draft.
      train_tokenizer: settings of the tokenizer's training; None for text.
      train_prior: settings of the prior's training.
      train_drafter: settings of the drafter's training.
      train_classifier: settings of the training of the classifier that measures images.
        Its configuration follows from the data.
      train_matcher: settings of the training of the matcher that measures images of
        captions.
      text_encoder: configuration of the text encoder that is trained together with a
        prior over captioned images; None for classes.

    Raises:
      ConfigError: the configurations do not fit together.
    """

    name: str
    data: DataConfig
    tokenizer: (
        TokenizerConfig
        | MultiScaleTokenizerConfig
        | KLTokenizerConfig
        | MaskGITTokenizerConfig
        | OneDTokenizerConfig
        | FlowTokenizerConfig
        | ResidualTokenizerConfig
        | None
    )
    prior: TransformerConfig | NextScaleConfig | MARConfig
    drafter: Any | None
    train_tokenizer: TokenizerTrainingConfig | None
    train_prior: PriorTrainingConfig
    train_drafter: DrafterTrainingConfig
    train_classifier: TrainingConfig = TrainingConfig(
        steps=1000, batch=64, warmup=50, ema=0.99, evaluate_every=200, save_every=200
    )
    train_matcher: TrainingConfig = TrainingConfig(
        steps=3000, batch=128, ema=0.99, evaluate_every=250, save_every=250
    )
    text_encoder: TextEncoderConfig | None = None

    def __post_init__(self):
        tokenizer, prior = self.tokenizer, self.prior
        if self.text_file is not None:
            bytes_alone = self.prompts_file is None
            if (
                tokenizer is not None
                or prior.condition != "none"
                or (bytes_alone and prior.vocab_size != 256)
            ):
                raise ConfigError(
                    f"{self.name}: for text set tokenizer=None and a prior with "
                    "vocab_size=256 and condition='none'"
                )
        elif tokenizer is None:
            raise ConfigError(f"{self.name}: images need a tokenizer")
        elif not same_tokens(prior, tokenizer):
            raise ConfigError(
                f"{self.name}: the prior is over {tokens_of(prior)}, the tokenizer "
                f"makes {tokens_of(tokenizer)}"
            )
        self._check_alone()
        text, captioned = self.text_encoder, prior.condition == "caption"
        if (text is not None) != captioned:
            raise ConfigError(
                f"{self.name}: a text encoder and a prior with condition='caption' "
                "belong together"
            )
        if not isinstance(prior, TransformerConfig):
            return
        if text is not None and (text.length, text.width) != (
            prior.caption_length,
            prior.caption_width,
        ):
            raise ConfigError(
                f"{self.name}: the prior reads {prior.caption_length} features of "
                f"width {prior.caption_width}, the text encoder gives {text.length} of "
                f"width {text.width}"
            )
        objective, exits = self.train_prior.objective, self.train_prior.exits
        if self.train_prior.full_scales is not None:
            raise ConfigError(f"{self.name}: full_scales is for next-scale models")
        if objective == "any_order" and not prior.next_cell:
            raise ConfigError(f"{self.name}: any_order needs prior.next_cell=True")
        if objective not in ("next", "any_order", "sorted") and not prior.extra_tokens:
            raise ConfigError(
                f"{self.name}: objective={objective!r} needs extra_tokens=1"
            )
        if objective not in ("next", "any_order", "sorted") and (
            prior.order != "raster" or prior.next_cell
        ):
            raise ConfigError(
                f"{self.name}: order and next_cell are for models that predict the "
                f"next token, not for objective={objective!r}"
            )
        if any(n >= prior.layers for n in exits):
            raise ConfigError(
                f"{self.name}: exits={exits} must be below the {prior.layers} layers"
            )
        try:
            if self.drafter is not None:
                make_drafter(self.drafter, prior)
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from None

    def _check_alone(self) -> None:
        """Checks a model that does not generate token by token, with its tokenizer."""
        tokenizer, prior = self.tokenizer, self.prior
        if isinstance(prior, TransformerConfig):
            return
        training = self.train_prior
        known = ("next", "sorted") if isinstance(prior, NextScaleConfig) else ("next",)
        if self.drafter is not None or training.objective not in known:
            raise ConfigError(
                f"{self.name}: a model that does not generate token by token has no "
                f"drafter, and of the objectives {' and '.join(map(repr, known))} alone"
            )
        if training.objective == "sorted":
            assert isinstance(prior, NextScaleConfig)
            self._check_subsets(prior)
        if isinstance(prior, NextScaleConfig) and (
            not isinstance(tokenizer, MultiScaleTokenizerConfig)
            or prior.code_dim != tokenizer.code_dim
        ):
            raise ConfigError(
                f"{self.name}: the prior reads codes of width {prior.code_dim}, the "
                f"tokenizer has {getattr(tokenizer, 'code_dim', None)}"
            )

    def _check_subsets(self, prior: NextScaleConfig) -> None:
        """Checks the training of subsets of layers."""
        exits, full = self.train_prior.exits, self.train_prior.full_scales
        if prior.mask_layers or not all(2 <= n < prior.layers for n in exits):
            raise ConfigError(
                f"{self.name}: exits={exits}; subsets have 2 to {prior.layers - 1} "
                "layers, of a model without mask_layers"
            )
        if full is None or not 1 <= full < len(prior.scales):
            raise ConfigError(
                f"{self.name}: full_scales={full}; choose 1 to {len(prior.scales) - 1} "
                "first maps that all layers compute"
            )

    @property
    def text_file(self) -> str | None:
        """File of the text to train on, or of prompts; None for images."""
        kind, _, file = self.data.name.partition(":")
        return file if kind in ("text", PROMPTS) else None

    @property
    def prompts_file(self) -> str | None:
        """File of the prompts to whose answers a drafter is trained; None for none."""
        kind, _, file = self.data.name.partition(":")
        return file if kind == PROMPTS else None


def load_experiment(path: str | Path) -> Experiment:
    """Returns the result of `get_config()` of a file such as `configs/fruits64.py`.

    Raises:
      ConfigError: the file is missing or fails, or the result is not an `Experiment`.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"no config file at '{path}'")
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        experiment = module.get_config()
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"'{path}': get_config() failed: {error}") from error
    if not isinstance(experiment, Experiment):
        raise ConfigError(f"'{path}': get_config() must return an Experiment")
    return experiment


def find_experiment(name: str | Path) -> Experiment:
    """Loads a preset by file, or by the name of one that comes with jaxspec.

    Raises:
      ConfigError: there is no such preset, or it fails.
    """
    path = Path(name)
    if path.suffix == ".py" or path.is_file():
        return load_experiment(path)
    folder = _presets()
    file = folder / f"{name}.py"
    if not file.is_file():
        known = sorted(
            p.relative_to(folder).with_suffix("").as_posix()
            for p in folder.rglob("*.py")
        )
        raise ConfigError(
            f"no preset {str(name)!r}; choose {', '.join(known)}, or a Python file"
        )
    return load_experiment(file)


def _presets() -> Path:
    """Folder of the presets that come with jaxspec."""
    package = Path(__file__).parent.parent
    for folder in (package / "_configs", package.parent / "configs"):
        if folder.is_dir():
            return folder
    raise ConfigError("this installation has no presets; name a Python file")


def with_training(
    experiment: Experiment, part: str, training: TrainingConfig
) -> Experiment:
    """The experiment with other settings for the training of one part."""
    return replace(experiment, **{f"train_{part}": training})


def with_steps(experiment: Experiment, part: str, steps: int) -> Experiment:
    """The experiment with another number of steps for the training of one part.

    Raises:
      ConfigError: the experiment has no such part.
    """
    training = getattr(experiment, f"train_{part}")
    if training is None:
        raise ConfigError(f"{experiment.name} has no {part} to train")
    return with_training(experiment, part, replace(training, steps=steps))
