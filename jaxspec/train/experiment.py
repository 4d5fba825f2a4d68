"""Experiments: the data, models and training settings of a preset in `configs/`."""

import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from jaxspec.config import (
    KLTokenizerConfig,
    MARConfig,
    MultiScaleTokenizerConfig,
    NextScaleConfig,
    TextEncoderConfig,
    TokenizerConfig,
    TransformerConfig,
)
from jaxspec.config.flow import FlowTokenizerConfig
from jaxspec.config.one_d import MaskGITTokenizerConfig, OneDTokenizerConfig
from jaxspec.config.residual import ResidualTokenizerConfig
from jaxspec.config.token_kinds import same_tokens, tokens_of
from jaxspec.drafters.registry import make_drafter
from jaxspec.errors import ConfigError
from jaxspec.train.settings import (
    PROMPTS,
    DataConfig,
    DrafterTrainingConfig,
    PriorTrainingConfig,
    TokenizerTrainingConfig,
    TrainingConfig,
)


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
        if training.token_noise:
            raise ConfigError(
                f"{self.name}: token_noise is for transformers over a row of tokens"
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
