"""Curves in TensorBoard, where its package is installed."""

from typing import Any

from jaxspec.train.events import Observer, TrainingEvent


def tensorboard_observer() -> Observer | None:
    """Observer that writes every metric; None if TensorBoard is not installed."""
    try:
        from tensorboard.summary import DirectoryOutput, Writer  # pyright: ignore
    except ImportError:
        return None
    writers: dict[str, Any] = {}

    def observe(event: TrainingEvent) -> None:
        folder = str(event.workdir / "tensorboard")
        if folder not in writers:
            writers[folder] = Writer(DirectoryOutput(folder))
        for name, value in event.metrics.items():
            if name != "step":
                tag = f"{event.part}/{name}"
                writers[folder].add_scalar(tag, value, event.step)
        if event.params is not None:
            writers[folder].flush()

    return observe
