"""Files that show how a training goes: curves, samples, TensorBoard, warnings."""

from jaxspec.train.monitor.observers import default_observers

__all__ = ["default_observers"]
