"""A small MAR with random parameters."""

from jaxspec.config import MARConfig
from jaxspec.core.diffusion import DiffusionSchedule
from jaxspec.mar import MARVariables, UnmaskingSchedule
from jaxspec.models.mar.model import MAR
from tests.params import random_like

CONFIG = MARConfig(
    channels=3,
    grid=4,
    encoder_layers=1,
    decoder_layers=1,
    width=16,
    heads=2,
    buffer=2,
    classes=5,
    head_layers=1,
    head_width=16,
)
MODEL = MAR(CONFIG)
SCHEDULE = UnmaskingSchedule(16, steps=6)
HEAD = DiffusionSchedule(count=4)


def variables(seed=0):
    return MARVariables(random_like(MODEL.init, spread=0.2, seed=seed))
