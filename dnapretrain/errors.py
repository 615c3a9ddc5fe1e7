"""The errors a user can cause. Each message names the value, the limit and the way out.

The command line prints such an error as one line and exits with `exit_code`; anything else that
escapes is a fault of ours and keeps its traceback.
"""


class DnaPretrainError(Exception):
    """Base of all errors that a user can cause and mend."""

    exit_code = 2


class ConfigError(DnaPretrainError):
    """A setting is unknown, out of range, or does not fit another setting."""


class DataError(DnaPretrainError):
    """Input or a shard cannot be used as it is: names the file, the record and the line."""


class CheckpointError(DnaPretrainError):
    """A checkpoint is missing, damaged, incomplete, or does not fit the run."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint is not as it was written: the one before it may do."""


class LostRankError(DnaPretrainError):
    """Another rank of the run has gone; why is for that rank, or for the launcher, to say."""


class BadStepError(DnaPretrainError):
    """Loss or gradient norm are not finite or a spike, and the settings do not let the run go on; names the samples and their loci."""


class DivergedReplicasError(DnaPretrainError):
    """Ranks that must hold the same weights do not: names the ranks and the weight."""


class HangError(DnaPretrainError):
    """A rank has waited too long for another: names the step, the place and the ranks that did not get there."""
