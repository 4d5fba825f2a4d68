"""Identity of a training, by which an interrupted one goes on."""

import hashlib
from typing import Any

# Settings that may change when a training resumes; all others identify the training.
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
    "keep",
    "rounded",
)
# Defaults of fields that came later, as configurations are written.
_LATER = (
    ", quantizer='vq', levels=()",
    ", order='raster'",
    ", text_length=0, text_width=0",
    ", next_cell=False, factors=()",
    ", ('full_scales', None)",
    ", ('encoder_alone', False)",
    ", ('generated_tokens', 0.0)",
    ", ('random_share', 1.0)",
    ", ('swap_neighbors', 10), ('swapped_images', 0.0), ('swapped_tokens', 0.5)",
    ", ('teacher_steps', 16)",
    ", ('token_noise', 0.0)",
)


def fingerprint(model: Any, training: Any, *sources: Any) -> str:
    """Digest that identifies a training: model, settings and data.

    The settings in `MAY_CHANGE` do not enter it.

    Args:
      model: frozen configuration of the model.
      training: settings of the training.
      sources: inputs of the training: configuration of the data, digests of the models
        trained before.
    """
    identity = {k: v for k, v in vars(training).items() if k not in MAY_CHANGE}
    return digest_of_values(model, sorted(identity.items()), *sources)


def digest_of_values(*values: Any) -> str:
    """Digest of values as they are written, without the defaults of later fields.

    Trainings that began before a field existed go on.

    Args:
      values: numbers, texts and frozen configurations.
    """
    text = repr(values)
    for field in _LATER:
        text = text.replace(field, "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]
