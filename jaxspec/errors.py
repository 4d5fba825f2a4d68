"""Exception types. A message names the cause and what to do about it."""


class JaxspecError(Exception):
    """Base of every error that jaxspec raises on purpose."""


class ConfigError(JaxspecError, ValueError):
    """A setting is impossible, unknown or of the wrong type."""


class CheckpointError(JaxspecError):
    """A checkpoint is missing, damaged, or does not fit the model it is loaded into."""


class DataError(JaxspecError):
    """A data set is missing, or an image or token array has the wrong form."""


class NonFiniteError(JaxspecError, ArithmeticError):
    """Weights or logits hold NaN or infinity where numbers are needed."""


class ProcessError(JaxspecError, RuntimeError):
    """A process of a multi-process run cannot be reached or has ended."""
