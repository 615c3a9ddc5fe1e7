"""The rules between settings, all in one place: each message names the values and the key to change.

`check_rules` holds whatever the number of ranks; `check_world` needs to know it.
"""

from __future__ import annotations

from dnapretrain.config import RunConfig
from dnapretrain.config_rules.data import check_data
from dnapretrain.config_rules.kernels import check_kernel_rules
from dnapretrain.config_rules.layout import check_layout, check_world
from dnapretrain.config_rules.network import check_network
from dnapretrain.config_rules.training import check_training

__all__ = ["check_rules", "check_world"]


def check_rules(config: RunConfig) -> None:
    """Rules between settings that hold whatever the number of ranks."""
    check_layout(config)
    check_network(config)
    check_training(config)
    check_data(config)
    check_kernel_rules(config)
