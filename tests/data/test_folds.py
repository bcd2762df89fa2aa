import hashlib
import time

import numpy as np
import pandas as pd
import pytest

from fb3.data.folds import fold_table, make_folds, read_folds
from fb3.demo.synthetic import make_essays
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe


@pytest.fixture(scope="module")
def essays():
    return pd.DataFrame([{"text_id": e.id, "full_text": e.text, **e.scores} for e in make_essays(200, seed=2)])


def recipe(*overrides):
    return load_recipe("tiny", overrides)


@pytest.mark.parametrize("count", [2, 4, 7])
def test_every_essay_is_validated_once(essays, count):
    splits = make_folds(essays, recipe(f"folds.count={count}"))
    assert [split.fold for split in splits] == list(range(count))
    assert sorted(np.concatenate([split.valid_rows for split in splits])) == list(range(200))
    for split in splits:
        assert sorted(np.concatenate([split.train_rows, split.valid_rows])) == list(range(200))


def test_folds_are_fixed_by_the_seed_and_balanced_on_all_columns(essays):
    first, again, other = (make_folds(essays, recipe(f"folds.seed={seed}")) for seed in (42, 42, 7))
    assert np.array_equal(first[0].valid_rows, again[0].valid_rows)
    assert not np.array_equal(first[0].valid_rows, other[0].valid_rows)
    targets = essays[list(recipe().data.target_columns)]
    spread = np.ptp([targets.iloc[split.valid_rows].mean() for split in first], axis=0)
    chance = np.random.default_rng(0)
    shuffled = [
        np.ptp([targets.iloc[h].mean() for h in np.split(chance.permutation(200), 2)], axis=0) for _ in range(20)
    ]
    assert spread.mean() < 0.5 * np.mean(shuffled)


def test_a_fold_column_is_honoured(essays):
    numbered = essays.assign(fold=np.arange(200) % 3)
    splits = make_folds(numbered, recipe())
    assert [split.valid_rows[:2].tolist() for split in splits] == [[0, 3], [1, 4], [2, 5]]
    with pytest.raises(Fb3Error, match="drop one"):
        make_folds(numbered, recipe("folds.holdout=0.2"))


def test_a_holdout_is_one_split(essays):
    (split,) = make_folds(essays, recipe("folds.holdout=0.2"))
    assert 35 <= len(split.valid_rows) <= 45
    assert len(split.train_rows) + len(split.valid_rows) == 200


def test_more_folds_than_essays(essays):
    with pytest.raises(Fb3Error, match=r"folds.count=300: more folds than essays \(200\)"):
        make_folds(essays, recipe("folds.count=300"))
    with pytest.raises(Fb3Error, match="empty"):
        make_folds(essays.iloc[:2], recipe("folds.holdout=0.01"))


def test_a_column_of_one_score_can_be_split(essays):
    flat = essays.assign(syntax=3.0)
    splits = make_folds(flat, recipe("data.target_columns=[syntax]"))
    assert sorted(np.concatenate([split.valid_rows for split in splits])) == list(range(200))


def test_saved_folds_are_matched_by_id(essays, tmp_path):
    for overrides in ([], ["folds.holdout=0.3"]):
        splits = make_folds(essays, recipe(*overrides))
        path = tmp_path / "folds.csv"
        fold_table(essays, splits, "text_id").to_csv(path, index=False)
        shuffled = essays.sample(frac=1, random_state=0).reset_index(drop=True)
        for before, after in zip(splits, read_folds(path, shuffled, "text_id"), strict=True):
            assert set(essays["text_id"].iloc[before.valid_rows]) == set(shuffled["text_id"].iloc[after.valid_rows])
            assert set(essays["text_id"].iloc[before.train_rows]) == set(shuffled["text_id"].iloc[after.train_rows])
        with pytest.raises(Fb3Error, match=r"folds\.csv and the essays hold different ids: 1 only in .*; train into"):
            read_folds(path, essays.iloc[1:], "text_id")


def rows_hash(splits):
    return hashlib.sha256(b"".join(s.valid_rows.astype("<i8").tobytes() for s in splits)).hexdigest()[:16]


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("folds.count=2", "db5397ea86a7c779"),
        ("folds.count=5", "bd51a446f84d2fa8"),
        ("folds.holdout=0.2", "9b91d49509e1fec8"),
    ],
)
def test_few_distinct_scores_are_split_as_ever(essays, override, wanted):
    assert rows_hash(make_folds(essays, recipe(override))) == wanted


def test_twenty_distinct_scores_are_still_stratified_one_by_one(essays):
    twenty = essays.assign(syntax=(np.arange(200) * 7 % 20).astype(np.float32))
    assert rows_hash(make_folds(twenty, recipe("folds.count=5"))) == "9629e75ed46d200d"


def continuous(rows, columns, seed):
    """A skewed target, of which three in ten are zero in the last column."""
    rng = np.random.default_rng(seed)
    values = rng.lognormal(0, 1.2, (rows, columns))
    values[:, -1] *= rng.random(rows) > 0.3
    return pd.DataFrame(values.astype(np.float32), columns=[f"c{n}" for n in range(columns)])


def split_of(table, *overrides):
    return make_folds(table, recipe(f"data.target_columns=[{','.join(table.columns)}]", *overrides))


def distances(table, parts):
    """How far means and spreads of parts are from the whole's, both in the whole's spread."""
    values = table.to_numpy(np.float64)
    whole = np.stack([values.mean(0), values.std(0)])
    return np.mean([np.abs(np.stack([values[p].mean(0), values[p].std(0)]) - whole) / whole[1] for p in parts], (0, 2))


@pytest.mark.parametrize("folds", [2, 5, 10])
def test_a_skewed_continuous_target_has_its_mean_and_spread_in_every_fold(folds):
    tables = [continuous(1000, 2, seed) for seed in range(6)]
    rng = np.random.default_rng(0)
    ours = np.mean([distances(t, [s.valid_rows for s in split_of(t, f"folds.count={folds}")]) for t in tables], 0)
    drawn = [distances(t, np.array_split(rng.permutation(1000), folds)) for t in tables for _ in range(10)]
    chance = np.mean(drawn, 0)
    assert ours[0] < 0.6 * chance[0]
    assert ours[1] < 0.85 * chance[1]  # one row of the far tail is a good part of a fold's spread
    assert ours[0] < 0.05


@pytest.mark.parametrize("rows", [21, 30, 44, 97])
@pytest.mark.parametrize("folds", [2, 5, 20])
def test_few_continuous_scores_are_split_into_even_folds(rows, folds):
    splits = split_of(continuous(rows, 2, seed=rows).assign(flat=np.float32(3)), f"folds.count={folds}")
    sizes = [len(split.valid_rows) for split in splits]
    assert sorted(np.concatenate([split.valid_rows for split in splits])) == list(range(rows))
    assert len(sizes) == folds
    assert max(sizes) - min(sizes) <= 3


def test_many_continuous_scores_are_split_in_seconds():
    start = time.process_time()
    splits = split_of(continuous(7165, 2, seed=0), "folds.count=5")
    assert time.process_time() - start < 5
    assert min(len(split.valid_rows) for split in splits) > 1400
    (holdout,) = split_of(continuous(2000, 1, seed=0), "folds.holdout=0.1")
    assert 190 <= len(holdout.valid_rows) <= 210
