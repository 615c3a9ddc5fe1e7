"""What several groups of rules need."""

from __future__ import annotations

from dnapretrain.config import RunConfig
from dnapretrain.errors import ConfigError


def divides(what: str, value: int, by_what: str, by: int, way_out: str) -> None:
    """Raise ConfigError unless `by` divides `value`."""
    if value % by:
        raise ConfigError(f"{what} = {value} is not divisible by {by_what} = {by}. {way_out}")


def sample_lengths(config: RunConfig) -> list[tuple[str, int]]:
    """The key and value of each length of samples in tokens."""
    stages = enumerate(config.data.stages, 1)
    of_stages = [(f"sequence_length of stage {number} of data.stages", stage.sequence_length) for number, stage in stages]
    return [("data.sequence_length", config.data.sequence_length), *((name, length) for name, length in of_stages if length)]
