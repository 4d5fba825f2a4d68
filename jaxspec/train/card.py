"""Model cards: what a checkpoint is, where it comes from, what may be done with it."""

from jaxspec.checkpoint import Checkpoint
from jaxspec.config import to_dict
from jaxspec.train.experiment import Experiment

_HARMLESS = "It can change the speed of generation and nothing else."
_WHAT = {
    "tokenizer": "VQ image tokenizer (LlamaGen family): images to codes and back.",
    "prior": "Autoregressive transformer over codes or bytes (LlamaGen family).",
    "classifier": "Small convolutional classifier; its features measure sets of "
    "images (`jaxspec eval images`).",
    "dflash": "One-pass block-diffusion drafter (DFlash family) for the prior "
    "beside it. " + _HARMLESS,
    "eagle": "One-layer feature drafter (EAGLE family) for the prior beside it. "
    + _HARMLESS,
    "falcon": "Semi-autoregressive feature drafter (Falcon) for the prior beside it. "
    + _HARMLESS,
    "kangaroo": "Adapter over the first layers (Kangaroo) of the prior beside it. "
    + _HARMLESS,
    "ppd": "Prompt tokens (PPD) for the prior beside them. " + _HARMLESS,
    "medusa": "Parallel heads (Medusa, Hydra) for the prior beside them. " + _HARMLESS,
}


def model_card(part: str, checkpoint: Checkpoint, experiment: Experiment) -> str:
    """Markdown that is written beside the parameters."""
    metadata = checkpoint.metadata
    training = to_dict(getattr(experiment, f"train_{part}"))
    metrics = metadata["metrics"]
    lines = [
        f"# {experiment.name}: {part}",
        "",
        _what(checkpoint),
        "",
        f"- Data: {metadata['data']} (`{experiment.data.name}`{_size(experiment)})",
        f"- License of the data and of these weights: {metadata['license']}",
        f"- Command: `{metadata['command']}`",
        f"- Device: {metadata['device']}, jax {metadata['jax']}",
        f"- Time: {metrics['seconds'] / 60:.1f} minutes; kept: step "
        f"{metrics['step']} of {training['steps']}, where the held-out loss was least",
        *([f"- Note: {metadata['note']}"] if "note" in metadata else []),
        "",
        f"## Measured on {_heldout(part, experiment)}",
        "",
        *(
            [f"Mind that {experiment.data.caveat}.", ""]
            if experiment.data.caveat and not _drawn(part, experiment)
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


def _what(checkpoint: Checkpoint) -> str:
    objective = checkpoint.metadata.get("objective", "next")
    if checkpoint.kind == "prior" and objective != "next":
        return (
            f"Transformer over the prior's tokens, trained for {objective!r}; drafts."
        )
    return _WHAT[checkpoint.kind]


def _drawn(part: str, experiment: Experiment) -> bool:
    """Whether a drafter learned from what its target drew."""
    return part == "drafter" and experiment.train_drafter.drawn > 0


def _heldout(part: str, experiment: Experiment) -> str:
    if _drawn(part, experiment):
        return "other sequences that the target drew"
    if experiment.text_file is not None:
        return "the end of the text"
    return f"the split `{experiment.data.heldout_split}`"


def _words(values: dict) -> str:
    return ", ".join(
        f"{name} ({_words(value)})" if isinstance(value, dict) else f"{name} {value}"
        for name, value in values.items()
        if value is not None
    )
