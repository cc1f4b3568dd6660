"""What can go wrong for a user, one class a cause; every message names the thing, the expectation and the remedy."""


class MuScalingError(Exception):
    """Base of the errors that a user can act on; recipes and the command line print them without a traceback."""


class ConfigurationError(MuScalingError, ValueError):
    """A setting is unknown, impossible, or in conflict with another (a width the head size does not divide, …)."""


class DataError(MuScalingError, ValueError):
    """A text source, tokenizer or packed data set is missing, empty, too small or not what was recorded."""


class RecordError(MuScalingError, ValueError):
    """A stored run, series, law or checkpoint is corrupt, was edited by hand, or belongs to something else."""


class FitError(MuScalingError, ValueError):
    """A table cannot be fitted by the law asked for."""


class TrainingError(MuScalingError, RuntimeError):
    """Training cannot go on: every run diverged, the disk is full, the output folder is not writable."""


class Preempted(MuScalingError, RuntimeError):
    """Training was asked to stop (SIGTERM) and did so at a checkpoint; commands end with status 75, "try again"."""


class UnknownQuantityError(RecordError):
    """A file of runs does not say something that a law needs; the message names the keyword that supplies it."""


class HubError(MuScalingError, RuntimeError):
    """The Hub refused or could not be reached; the message says what happened and how to continue."""
