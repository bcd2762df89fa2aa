import csv

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import Ridge

from fb3.demo.synthetic import TARGETS, make_essays, write_competition
from fb3.errors import Fb3Error
from fb3.targets.metrics import mcrmse


def test_the_same_seed_gives_the_same_essays():
    assert make_essays(5, seed=1) == make_essays(5, seed=1) != make_essays(5, seed=2)


def test_scores_are_those_of_the_competition():
    essays = make_essays(300, seed=1)
    scores = np.array([[essay.scores[t] for t in TARGETS] for essay in essays])
    assert set(np.unique(scores)) <= set(np.arange(1, 5.5, 0.5))
    assert len({essay.id for essay in essays}) == 300
    assert (scores.std(0) > 0.4).all()


def test_each_score_depends_on_the_text_beyond_the_common_ability():
    """A linear reader of the words beats the mean on every column, and on each column's own part."""
    essays = make_essays(1000, seed=1)
    scores = np.array([[essay.scores[t] for t in TARGETS] for essay in essays])
    words = CountVectorizer(lowercase=False, ngram_range=(1, 2), min_df=3).fit_transform([e.text for e in essays])
    train, test = slice(0, 800), slice(800, None)
    own = scores - scores.mean(1, keepdims=True)
    for truth in (scores, own):
        predicted = Ridge(alpha=30.0).fit(words[train], truth[train]).predict(words[test])
        baseline = np.repeat(truth[train].mean(0)[None], 200, 0)
        assert mcrmse(truth[test], predicted) < 0.85 * mcrmse(truth[test], baseline)


def test_the_files(tmp_path):
    truth = write_competition(tmp_path / "data", 20, 5, seed=1)
    read = {p.name: list(csv.DictReader(p.open(newline=""))) for p in [*(tmp_path / "data").iterdir(), truth]}
    assert {name: len(rows) for name, rows in read.items()} == {
        "train.csv": 20,
        "test.csv": 5,
        "sample_submission.csv": 5,
        "truth.csv": 5,
    }
    assert list(read["train.csv"][0]) == ["text_id", "full_text", *TARGETS]
    assert list(read["sample_submission.csv"][0]) == list(read["truth.csv"][0]) == ["text_id", *TARGETS]
    with pytest.raises(Fb3Error, match="not empty"):
        write_competition(tmp_path / "data", 20, 5, seed=1)
