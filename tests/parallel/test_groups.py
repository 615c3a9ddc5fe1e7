"""Groups that were taken down leave nothing behind."""

from __future__ import annotations

import pytest
import ranks as pool
import training


@pytest.mark.parametrize("distributed", [False, True], ids=["whole", "distributed-optimizer"])
def test_no_thread_of_gloo_outlives_its_group(ranks, tiny_config, distributed):
    """Each wakes up a hundred times a second: some hundred calls would leave a machine that does nothing else."""
    tree = tiny_config(**{"parallel.use_distributed_optimizer": distributed})
    ranks.run(2, training.train, tree=tree, until=1, save=True)
    assert ranks.run(2, pool.count_threads) == [0, 0]
