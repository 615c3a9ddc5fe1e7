"""Global batches are a function of sample ids alone: the same for any number of data-parallel ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dnapretrain.config_file import config_from_dict
from dnapretrain.data.sampling.lengths import train_stream
from dnapretrain.data.sampling.samples import held_out_streams
from dnapretrain.data.tokens.tokenizers import build_tokenizer
from dnapretrain.model.batches import BatchPlace, direct_readers, held_out_batches, step_batches
from dnapretrain.model.loss import weighted_loss


@pytest.fixture
def streams(tiny_config):
    config = config_from_dict(tiny_config())
    tokenizer = build_tokenizer(config.tokenizer)
    return train_stream(config.data, tokenizer), held_out_streams(config.data, tokenizer)["valid"]


def _global_batch(stream, size, micro, ranks, first):
    rows = []
    for rank in range(ranks):
        place = BatchPlace(micro, rank, ranks, torch.device("cpu"), (True,), 0, False)
        (batches,) = step_batches(direct_readers(stream, place), place, first, size // (micro * ranks))
        rows.append(list(batches))
    return torch.cat([rows[rank][index].tokens_BS for index in range(len(rows[0])) for rank in range(ranks)])


@pytest.mark.parametrize("first", [0, 24, 1_000_000])
def test_same_global_batch_for_any_number_of_ranks(streams, first):
    stream, _ = streams
    expected = torch.from_numpy(stream.batch(np.arange(first, first + 24)).tokens)
    for ranks, micro in ((1, 24), (1, 2), (2, 2), (4, 2), (4, 6), (3, 4)):
        assert torch.equal(_global_batch(stream, 24, micro, ranks, first), expected)


def test_held_out_samples_are_each_scored_once(streams):
    _, stream = streams
    total = 0.0
    for rank in range(3):
        place = BatchPlace(4, rank, 3, torch.device("cpu"), (True,), 0, False)
        (batches,) = held_out_batches(stream, place, 0, 10, stream.num_samples)
        total += sum(float(batch.loss_mask_BS.sum()) for batch in batches)
    assert stream.num_samples < 3 * 4 * 10
    assert total == float(stream.batch(np.arange(stream.num_samples)).loss_mask.sum())


def test_middle_stages_read_nothing(streams):
    place = BatchPlace(2, 0, 1, torch.device("cpu"), (True, False), 0, False)
    first, middle = step_batches(direct_readers(streams[0], place), place, 0, 3)
    assert [batch is None for batch in middle] == [True] * 3
    assert next(first).tokens_BS.shape == (2, 32)


def test_weighted_loss_counts_targets_and_weights():
    losses = torch.tensor([[1.0, 2.0], [4.0, 8.0]])
    mask = torch.tensor([[1.0, 0.0], [0.1, 1.0]])
    correct = torch.tensor([[True, True], [False, True]])
    loss_sum, targets, report = weighted_loss(mask, 7, (losses, correct))
    assert loss_sum.item() == pytest.approx(1.0 + 0.4 + 8.0)
    assert targets.item() == 3 and targets.dtype == torch.int
    assert report.tolist() == pytest.approx([9.4, 2.1, 3.0, 2.0, 7.0, 0.0, 0.0])
    bits, is_word = torch.tensor([[1.5, 5.0], [3.0, 7.0]]), torch.tensor([[True, True], [True, False]])
    *_, report = weighted_loss(mask, 7, (losses, correct, bits, is_word))
    assert report.tolist() == pytest.approx([9.4, 2.1, 3.0, 2.0, 7.0, 1.5 + 0.3, 1.1])
