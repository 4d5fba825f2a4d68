"""What a file in `configs/` returns: data, three models, and how to train each."""

import hashlib
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from jaxspec.config import TokenizerConfig, TransformerConfig
from jaxspec.config.checks import number, whole
from jaxspec.drafters.kinds import DrafterConfig, make_drafter
from jaxspec.errors import ConfigError
from jaxspec.train.divergence import Divergence


@dataclass(frozen=True)
class DataConfig:
    """A data set and the words its derivatives must carry.

    Attributes:
      name: a name that `jaxspec.data.source.ImageSource` takes, or "text:FILE" for a
        file in the folder of files, one token a byte.
      train_split: tfds split to learn from.
      heldout_split: tfds split that measures and selects.
      flips: images may be mirrored left to right.
      credit: author and origin.
      license: license of the data and of what is derived from it.
      caveat: what a reader of held-out measurements must know.
    """

    name: str
    train_split: str = "train"
    heldout_split: str = "test"
    flips: bool = True
    credit: str = ""
    license: str = "unknown"
    caveat: str = ""


@dataclass(frozen=True)
class TrainingConfig:
    """Settings that every trainer reads.

    Attributes:
      steps: optimizer steps.
      batch: examples a step.
      learning_rate: peak of a linear warm-up and cosine decay to zero.
      warmup: steps of the warm-up.
      beta2: AdamW's second moment.
      weight_decay: AdamW's decay, on matrices only.
      clip: global gradient norm.
      ema: decay of the averaged weights that are kept; 0 keeps the last.
      compute_dtype: "float32" or "bfloat16", of the matrix products.
      seed: of the order, of dropout and of the initial weights.
      log_every: steps between lines of metrics.
      evaluate_every: steps between measurements on held-out data.
      save_every: steps between saved states.
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
    seed: int = 0
    log_every: int = 20
    evaluate_every: int = 500
    save_every: int = 500

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


# What may be changed when a training goes on; the rest says which training it is.
MAY_CHANGE = (
    "steps",
    "learning_rate",
    "warmup",
    "beta2",
    "weight_decay",
    "clip",
    "ema",
    "log_every",
    "evaluate_every",
    "save_every",
)


Objective = Literal["next", "sorted", "masked", "continuation", "refinement", "tidar"]


@dataclass(frozen=True)
class PriorTrainingConfig(TrainingConfig):
    """Settings of the trainer of models over codes; see `train.objectives`.

    Attributes:
      objective: what is learned. "next": the next token. "sorted": the same at several
        depths (S2D, LayerSkip). "masked": hidden tokens (MDLM). "continuation" and
        "refinement": blocks behind a prefix (DEER's two stages). "tidar": next tokens
        and blocks. All but the first two need `extra_tokens`.
      exits: layers after which a "sorted" model may be left.
      block: rows of a block.
    """

    objective: Objective = "next"
    exits: tuple[int, ...] = ()
    block: int = 8

    def __post_init__(self):
        super().__post_init__()
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
      divergence: what is made small; see `train.divergence`.
      decay: guesses `k` places ahead weigh `exp(-k / decay)`.
      cfg_scale: above 1, guided laws are compared, at scales drawn evenly between 1 and
        this for each sequence (ours): what guidance amplifies is what is trained.
      drawn: sequences that the target draws and the drafter is trained on, guided as
        above, instead of the data's; 0 for the data.
      null_share: share of unconditional sequences where `cfg_scale` is 1.
      regression: weight of a loss on features, where a recipe has one (EAGLE-1).
      cached: "float32" or "bfloat16": what the target says of all sequences is computed
        once and kept on disk in this dtype; "no": anew in each step.
    """

    divergence: Divergence = "forward_kl"
    decay: float = 4.0
    cfg_scale: float = 1.0
    drawn: int = 0
    null_share: float = 0.3
    regression: float = 10.0
    cached: Literal["no", "float32", "bfloat16"] = "no"

    def __post_init__(self):
        super().__post_init__()
        number(self, "above 0", lambda x: x > 0, "decay")
        number(self, "of at least 1", lambda x: x >= 1, "cfg_scale")
        number(self, "from 0 to 1", lambda x: 0 <= x <= 1, "null_share")
        number(self, "of at least 0", lambda x: x >= 0, "regression")
        whole(self, 0, "drawn")
        if self.cached not in ("no", "float32", "bfloat16"):
            raise ConfigError(f"cached={self.cached!r}; choose no, float32, bfloat16")
        if self.divergence not in get_args(Divergence):
            known = ", ".join(get_args(Divergence))
            raise ConfigError(f"divergence={self.divergence!r}; choose {known}")


@dataclass(frozen=True)
class Experiment:
    """One preset: a tokenizer, a prior over its codes, and the prior's drafter.

    Text has no tokenizer: a token is a byte. A model that is itself a drafter has none.

    The classifier that measures images is the same for all, but for its training.
    """

    name: str
    data: DataConfig
    tokenizer: TokenizerConfig | None
    prior: TransformerConfig
    drafter: DrafterConfig | None
    train_tokenizer: TrainingConfig | None
    train_prior: PriorTrainingConfig
    train_drafter: DrafterTrainingConfig
    train_classifier: TrainingConfig = TrainingConfig(
        steps=1000, batch=64, warmup=50, ema=0.99, evaluate_every=200, save_every=200
    )

    def __post_init__(self):
        t, p, d = self.tokenizer, self.prior, self.drafter
        if self.text_file is not None:
            if t is not None or p.condition != "none" or p.vocab_size != 256:
                raise ConfigError(
                    f"{self.name}: text takes no tokenizer, and a prior over 256 "
                    "tokens without a condition"
                )
        elif t is None:
            raise ConfigError(f"{self.name}: images need a tokenizer")
        elif p.vocab_size != t.codebook_size or p.grid != t.grid:
            raise ConfigError(
                f"{self.name}: the prior is over {p.vocab_size} codes on a "
                f"{p.grid}x{p.grid} grid, the tokenizer makes {t.codebook_size} on "
                f"{t.grid}x{t.grid}"
            )
        objective, exits = self.train_prior.objective, self.train_prior.exits
        if objective not in ("next", "sorted") and not p.extra_tokens:
            raise ConfigError(
                f"{self.name}: objective={objective!r} needs extra_tokens=1"
            )
        if any(n >= p.layers for n in exits):
            raise ConfigError(
                f"{self.name}: exits={exits} must be below the {p.layers} layers"
            )
        try:
            if d is not None:
                make_drafter(d, p)
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from None

    @property
    def text_file(self) -> str | None:
        """Name of the text that is learned, if it is text."""
        kind, _, file = self.data.name.partition(":")
        return file if kind == "text" else None


def fingerprint(model: Any, training: TrainingConfig, *sources: Any) -> str:
    """A digest of what is trained on what; `MAY_CHANGE` is left out.

    Args:
      model: the model's frozen configuration.
      training: its training's settings.
      sources: what it reads: the data's configuration, digests of earlier parts.
    """
    fixed = {k: v for k, v in vars(training).items() if k not in MAY_CHANGE}
    text = repr((model, sorted(fixed.items()), *sources))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load_experiment(path: str | Path) -> Experiment:
    """Runs `get_config()` of a file such as `configs/fruits64.py`.

    Raises:
      ConfigError: the file is missing, fails, or returns something else.
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


def with_steps(experiment: Experiment, part: str, steps: int) -> Experiment:
    """The same experiment with another length for one part's training."""
    field = f"train_{part}"
    if getattr(experiment, field) is None:
        raise ConfigError(f"{experiment.name} has no {part} to train")
    training = replace(getattr(experiment, field), steps=steps)
    return replace(experiment, **{field: training})
