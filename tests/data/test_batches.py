import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fb3.data.batches import BUCKET_BATCHES, collate, inference_batches, steps_per_epoch, training_batches
from fb3.data.tokens import Encoded

LENGTHS = st.lists(st.integers(1, 600), min_size=1, max_size=200).map(np.array)


@given(LENGTHS, st.integers(1, 16), st.integers(0, 99))
def test_training_batches_hold_every_row_once(lengths, size, seed):
    rows = np.arange(len(lengths))
    batches = training_batches(lengths, rows, size, seed, epoch=0)
    assert sorted(np.concatenate(batches)) == rows.tolist()
    assert max(map(len, batches)) <= size
    assert sum(len(b) < size for b in batches) <= 1
    assert len(batches) == steps_per_epoch(len(rows), size, 1)
    again = training_batches(lengths, rows, size, seed, epoch=0)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_training_batches_are_new_each_epoch_and_of_similar_length():
    lengths = np.random.default_rng(0).integers(10, 500, 1024)
    first, second = (training_batches(lengths, np.arange(1024), 8, 42, epoch) for epoch in (0, 1))
    assert not all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    padded = sum(lengths[b].max() * len(b) for b in first)
    assert padded / lengths.sum() < 1.12
    assert BUCKET_BATCHES == 16


@given(LENGTHS, st.integers(1, 4096))
def test_inference_batches_keep_to_the_budget_longest_first(lengths, budget):
    batches = inference_batches(lengths, np.arange(len(lengths)), budget)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or lengths[batch].max() * len(batch) <= budget
    longest = [lengths[batch].max() for batch in batches]
    assert longest == sorted(longest, reverse=True)


def test_collate_pads_to_the_longest_of_the_batch():
    encoded = Encoded(
        [np.array([5, 6, 7], np.int32), np.array([8], np.int32), np.arange(9, dtype=np.int32)],
        pad_id=3,
        lengths=np.array([3, 1, 9]),
    )
    batch = collate(encoded, np.array([1, 0]), np.array([[1.0], [2.0], [3.0]], np.float32))
    assert batch["input_ids"].tolist() == [[8, 3, 3], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
    assert batch["row"].tolist() == [1, 0]
    assert batch["targets"].tolist() == [[2.0], [1.0]]
