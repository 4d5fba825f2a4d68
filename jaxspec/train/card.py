"""Model cards: content, origin, license and measurements of a checkpoint."""

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import to_dict
from jaxspec.models.masked_lm.model import MASKED_OBJECTIVES
from jaxspec.train.experiment import Experiment
from jaxspec.train.matcher import MATCHER

_KEPT = {
    "best": "the lowest held-out loss",
    "last": "whatever held-out loss it has",
}
_LOSSLESS = "It can change the speed of generation and nothing else."
_DESCRIPTIONS = {
    "tokenizer": "VQ image tokenizer (LlamaGen family): images to tokens and back.",
    "prior": "Autoregressive transformer over image tokens or bytes (LlamaGen family).",
    "multi_scale_tokenizer": "Multi-scale VQ tokenizer (VAR family): images to token "
    "maps that grow, and back.",
    "next_scale": "Next-scale transformer (VAR family), which predicts token maps, "
    "coarse to fine.",
    "one_d_tokenizer": "One-dimensional VQ tokenizer (TiTok family): images to a row "
    "of tokens, and back.",
    "flow_tokenizer": "One-dimensional tokenizer with a flow (FlexTok): images to "
    "a row of tokens, and back from noise.",
    "residual_tokenizer": "Residual VQ tokenizer (RQ family): images to several tokens "
    "a cell, coarse to fine, and back.",
    "kl_tokenizer": "Autoencoder of images and continuous latents (KL-16).",
    "mar": "Masked transformer over continuous tokens with a diffusion head (MAR).",
    "text_encoder": "Text encoder (T5's form) of captions, trained together with the "
    "prior beside it.",
    "classifier": "Small convolutional classifier; its features measure sets of "
    "images (`jaxspec eval images`).",
    "matcher": "Small matcher of images and captions, by which generated images are "
    "measured (`jaxspec eval captions`).",
    "dflash": "One-pass block-diffusion drafter (DFlash family) for the prior "
    "beside it. " + _LOSSLESS,
    "eagle": "One-layer feature drafter (EAGLE family) for the prior beside it. "
    + _LOSSLESS,
    "falcon": "Semi-autoregressive feature drafter (Falcon) for the prior beside it. "
    + _LOSSLESS,
    "kangaroo": "Adapter (Kangaroo) on the first layers of the prior beside it. "
    + _LOSSLESS,
    "ppd": "Prompt tokens (PPD) for the prior beside them. " + _LOSSLESS,
    "medusa": "Parallel heads (Medusa, Hydra) for the prior beside them. " + _LOSSLESS,
}


def model_card(part: str, checkpoint: Checkpoint, experiment: Experiment) -> str:
    """Model card in Markdown.

    Args:
      part: name of the trained part.
      checkpoint: its parameters and metadata.
      experiment: data, configurations and training settings.
    """
    metadata = checkpoint.metadata
    name, part = part, "prior" if part == "text_encoder" else part
    training = to_dict(getattr(experiment, f"train_{part}"))
    metrics = metadata["metrics"]
    lines = [
        f"# {experiment.name}: {name}",
        "",
        _description(checkpoint),
        "",
        f"- Data: {metadata['data']} (`{experiment.data.name}`{_size(experiment)})",
        f"- License of the data and of these weights: {metadata['license']}",
        f"- Command: `{metadata['command']}`",
        f"- Device: {metadata['device']}, jax {metadata['jax']}",
        f"- Time: {metrics['seconds'] / 60:.1f} minutes; saved: step "
        f"{metrics['step']} of {training['steps']}, with {_KEPT[training['keep']]}",
        *([f"- Note: {metadata['note']}"] if "note" in metadata else []),
        "",
        f"## Measured on {_heldout(part, experiment)}",
        "",
        *(
            [f"Note that {experiment.data.caveat}.", ""]
            if experiment.data.caveat and not _self_generated(part, experiment)
            else []
        ),
        *(
            f"- {name}: {value:.4g}"
            for name, value in metrics.items()
            if name not in ("step", "seconds")
        ),
        "",
        "## Settings",
        "",
        "Model: " + _words(to_dict(checkpoint.config)) + ".",
        "",
        "Training: " + _words(training) + ".",
        "",
    ]
    return "\n".join(lines)


def _size(experiment: Experiment) -> str:
    if experiment.tokenizer is None:
        return ""
    return f", {experiment.tokenizer.image_size}x{experiment.tokenizer.image_size}"


def _description(checkpoint: Checkpoint) -> str:
    objective = checkpoint.metadata.get("objective", "next")
    if checkpoint.kind == "prior" and objective in MASKED_OBJECTIVES:
        return (
            f"Transformer that fills in masked tokens, trained with {objective=}; it "
            "generates by itself, or drafts for an autoregressive prior."
        )
    if checkpoint.kind == "prior" and objective == "any_order":
        return "Autoregressive transformer over image tokens in any order (RAR)."
    if checkpoint.kind == "prior" and objective != "next":
        return (
            f"Transformer over the prior's tokens, trained with {objective=}; it "
            "drafts for the prior."
        )
    return _DESCRIPTIONS[checkpoint.kind]


def _self_generated(part: str, experiment: Experiment) -> bool:
    """Whether a drafter was trained on sequences that its target generated."""
    return part == "drafter" and experiment.train_drafter.self_generated > 0


def _heldout(part: str, experiment: Experiment) -> str:
    if _self_generated(part, experiment):
        return "other sequences that the target generated"
    if experiment.text_file is not None:
        return "the end of the text"
    if part == MATCHER and experiment.data.matcher_split:
        return (
            f"the split `{experiment.data.heldout_split}`; it was trained on "
            f"`{experiment.data.matcher_split}`"
        )
    return f"the split `{experiment.data.heldout_split}`"


def _words(values: dict) -> str:
    return ", ".join(
        f"{name} ({_words(value)})" if isinstance(value, dict) else f"{name} {value}"
        for name, value in values.items()
        if value is not None
    )
