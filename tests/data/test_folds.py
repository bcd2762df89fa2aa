import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fb3.data.essays import read_essays
from fb3.data.folds import describe_groups, fold_table, make_folds, read_folds, take_sample
from fb3.data.stratification import assign_groups
from fb3.demo.synthetic import make_essays
from fb3.errors import Fb3Error
from fb3.recipe import load_recipe
from fb3.targets.build import target_of
from tests.conftest import ROOT


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


REAL = Path(os.environ.get("FB3_DATA", ROOT.parent / "shared" / "data" / "fb3")) / "train.csv"


@pytest.mark.skipif(not REAL.is_file(), reason="no competition data; set FB3_DATA")
@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ([], "a1527f3cb51c991b"),
        (["folds.count=5"], "1698a72268c98988"),
        (["folds.holdout=0.2"], "84162ce66581a481"),
        (["data.target_columns=[syntax]"], "48d5a37d9e8964b2"),
    ],
)
def test_the_real_essays_are_split_as_ever(overrides, wanted):
    chosen = load_recipe("minilm-l6", overrides)
    assert rows_hash(make_folds(read_essays(REAL, chosen.data, target_of(chosen)), chosen)) == wanted


def grouped(groups, seed=0):
    """A table with a skewed label and a continuous target, both of which lean to one side within each group."""
    rng = np.random.default_rng(seed)
    lean = rng.normal(0, 0.7, max(groups) + 1)[np.array(groups)]
    label = np.digitize(rng.normal(0, 1, len(groups)) + lean, [1, 2])
    value = np.exp(rng.normal(0, 1, len(groups)) + lean)
    table = pd.DataFrame({"label": label, "value": value}).astype(np.float32)
    return table.assign(prompt=[f"p{g}" for g in groups], text_id=[str(n) for n in range(len(groups))])


TWO = ["data.target_columns=[label, value]", "folds.group_column=prompt"]


def group_split(table, *overrides):
    return make_folds(table, recipe(*TWO, *overrides))


def assert_groups_stay_together(table, splits):
    for split in splits:
        assert not set(table["prompt"].iloc[split.train_rows]) & set(table["prompt"].iloc[split.valid_rows])
        assert sorted(np.concatenate([split.train_rows, split.valid_rows])) == list(range(len(table)))


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.integers(1, 30), min_size=2, max_size=40),
    st.integers(2, 6),
    st.sampled_from(["labels", "label_sets", "none"]),
    st.integers(0, 99),
)
def test_no_group_is_in_two_folds(sizes, count, stratify, seed):
    count = min(count, len(sizes))
    table = grouped(np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes)), seed)
    wanted = [f"folds.count={count}", f"folds.stratify={stratify}", f"folds.seed={seed}"]
    splits, again = group_split(table, *wanted), group_split(table, *wanted)
    assert [split.fold for split in splits] == list(range(count))
    assert sorted(np.concatenate([split.valid_rows for split in splits])) == list(range(len(table)))
    assert_groups_stay_together(table, splits)
    lengths = [len(split.valid_rows) for split in splits]
    assert min(lengths) > 0
    assert stratify != "none" or max(lengths) - min(lengths) <= max(sizes)
    assert rows_hash(splits) == rows_hash(again)


@pytest.mark.parametrize("seed", range(3))
def test_folds_of_groups_are_even_and_stratified_on_all_columns(seed):
    rng = np.random.default_rng(seed)
    table = grouped(np.minimum(rng.geometric(0.05, 2000), 60), seed)
    splits = group_split(table, "folds.count=5", f"folds.seed={seed}")
    sizes, largest = [len(split.valid_rows) for split in splits], table["prompt"].value_counts().iloc[0]
    assert max(sizes) - min(sizes) <= largest / 2

    def unevenness(parts):
        shares = np.array([[np.mean(table["label"].iloc[rows] == label) for label in range(3)] for rows in parts])
        means = np.array([np.log(table["value"].iloc[rows]).mean() for rows in parts])
        return shares.std(0).mean(), means.std()

    ours, names = unevenness([split.valid_rows for split in splits]), table["prompt"].unique()
    drawn = []
    for _ in range(20):
        parts = dict(zip(names, rng.permutation(len(names)) % 5, strict=True))
        numbers = table["prompt"].map(parts).to_numpy()
        drawn.append(unevenness([np.flatnonzero(numbers == n) for n in range(5)]))
    assert (np.array(ours) < 0.6 * np.mean(drawn, 0)).all()


def test_the_seed_decides_among_groups_of_one_size():
    table = grouped(np.arange(300) // 3)
    first, other = group_split(table), group_split(table, "folds.seed=7")
    assert rows_hash(first) != rows_hash(other)
    assert_groups_stay_together(table, first + other)


@pytest.mark.parametrize("holdout", [0.1, 0.3, 0.8])
def test_a_holdout_and_a_sample_keep_groups_together(holdout):
    table = grouped(np.random.default_rng(1).integers(0, 60, 900))
    chosen = recipe(*TWO, f"folds.holdout={holdout}", "data.sample=600")
    some = take_sample(table, chosen)
    splits = make_folds(some, chosen)
    assert len(splits) == 1
    assert_groups_stay_together(some, splits)
    assert abs(len(splits[0].valid_rows) - holdout * 600) <= some["prompt"].value_counts().iloc[0]
    numbers = fold_table(some, splits, "text_id")["fold"]
    assert sorted(set(numbers)) == [-1, 0]


def test_groups_that_cannot_be_split_are_told():
    table = grouped([0] * 50 + [1] * 50)
    for overrides, words in {
        ("folds.count=4",): r"folds.count=4: column prompt has too few groups for it \(2 in 100 essays\); give at most "
        "folds.count=2, or leave folds.group_column out",
        ("folds.holdout=0.1",): r"folds.holdout=0.1: no group of column prompt suits it, the smallest has 50 of 100 "
        "essays; give about 0.50, or folds.count instead",
    }.items():
        with pytest.raises(Fb3Error, match=words):
            group_split(table, *overrides)
    for overrides in (["folds.count=2"], ["folds.holdout=0.5"]):
        with pytest.raises(Fb3Error, match=r"too few groups for it \(1 in 50 essays\); leave folds.group_column out"):
            group_split(table.iloc[:50], *overrides)
        assert len(group_split(table, *overrides)[0].valid_rows) == 50


def test_a_fold_column_must_keep_groups_together():
    table = grouped([0, 0, 1, 1, 2, 2])
    splits = group_split(table.assign(fold=[0, 0, 1, 1, 0, 0]))
    assert [split.valid_rows.tolist() for split in splits] == [[0, 1, 4, 5], [2, 3]]
    with pytest.raises(Fb3Error, match=r"`fold` column: 2 groups of folds.group_column=prompt are .* first 'p1' in"):
        group_split(table.assign(fold=[0, 0, 1, 0, 0, 1]))


def test_groups_and_folds_are_described_in_one_line():
    table = grouped([0] * 5 + [1] * 4 + [2] * 3)
    wanted = "folds.group_column=prompt: 3 groups in 12 essays, the largest of 5 ('p0'); to validate: 5, 7 essays"
    assert describe_groups(table, group_split(table, "folds.stratify=none"), "prompt") == wanted


def test_label_sets_spread_combinations_that_single_labels_do_not():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.integers(0, 3, (600, 4)).astype(np.float32), columns=list("abcd"))
    sets = table.astype(str).agg("".join, axis=1)

    def unevenness(*overrides):
        splits = split_of(table, "folds.count=5", *overrides)
        return np.std(
            [sets.iloc[s.valid_rows].value_counts().reindex(sets.unique()).fillna(0) for s in splits], 0
        ).mean()

    assert unevenness("folds.stratify=label_sets") < 0.7 * unevenness()


def test_another_column_is_stratified_by_text_or_number(essays):
    rng = np.random.default_rng(0)
    more = essays.assign(
        source=rng.choice(["web", "exam", "rare"], 200, p=[0.6, 0.3, 0.1]), words=rng.lognormal(5, 1, 200)
    )
    splits = make_folds(more, recipe("folds.stratify_columns=[source, words]", "folds.count=4"))
    parts = [more.iloc[split.valid_rows] for split in splits]
    for source in ("web", "exam", "rare"):
        assert np.ptp([(part["source"] == source).sum() for part in parts]) <= 3
    assert np.ptp([part["words"].median() for part in parts]) < 0.35 * more["words"].std()


def test_a_text_column_of_many_values_is_split_in_seconds():
    table = pd.DataFrame({"a": np.arange(20_000) % 5, "name": [f"n{n % 7000}" for n in range(20_000)]})
    start = time.process_time()
    splits = make_folds(table, recipe("data.target_columns=[a]", "folds.stratify_columns=name", "folds.count=4"))
    assert time.process_time() - start < 10
    assert min(len(split.valid_rows) for split in splits) > 4900


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_split_by_chance_is_even(essays, count):
    splits = make_folds(essays, recipe("folds.stratify=none", f"folds.count={count}"))
    assert np.ptp([len(split.valid_rows) for split in splits]) <= 1
    assert sorted(np.concatenate([split.valid_rows for split in splits])) == list(range(200))
    (holdout,) = make_folds(essays, recipe("folds.stratify=none", "folds.holdout=0.15"))
    assert len(holdout.valid_rows) == 30


def test_groups_of_unlike_sizes_make_a_holdout_of_nearly_its_size():
    """Off by half of what it is where a large group may go first to where there is no room for it."""
    rng, off = np.random.default_rng(0), []
    for _ in range(200):
        sizes = np.minimum(rng.geometric(rng.choice([0.02, 0.1, 0.3]), rng.integers(5, 60)), 300)
        groups, share = np.repeat(np.arange(len(sizes)), sizes), rng.choice([0.02, 0.05, 0.1, 0.2, 0.3])
        labels = (rng.random((len(groups), rng.integers(0, 4))) < 0.3).astype(int)
        held = (assign_groups(groups, labels, np.array([share, 1 - share]), 0) == 0).sum()
        off.append(abs(held - share * len(groups)))
    assert np.mean(off) < 2
