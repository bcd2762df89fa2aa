"""Every built-in competition on small files of its form: train, pack, predict, score; and its commonest mistake."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

from fb3.bundles.packing import write_bundle
from fb3.errors import Fb3Error
from fb3.recipe import load_competition, load_recipe
from fb3.rehearsal.notebooks import find_notebook
from fb3.runs.file_score import score_files
from fb3.submission.inference import infer
from fb3.system.files import read_json
from fb3.training.run import train
from tests.conftest import TINY
from tests.initial_recipe.forms import FORMS, write_form

SMALL = [*TINY, "data.max_length=48", "train.batch_size=16"]


def rmse(truth, predicted):
    return np.sqrt(((truth - predicted) ** 2).mean(0)).mean()


def pearson(truth, predicted):
    return np.corrcoef(truth[:, 0], predicted[:, 0])[0, 1]


def auc(truth, predicted):
    return np.mean([metrics.roc_auc_score(*column) for column in zip(truth.T, predicted.T, strict=True)])


def qwk(truth, predicted):
    return metrics.cohen_kappa_score(truth[:, 0].astype(int), predicted[:, 0].astype(int), weights="quadratic")


def f1(truth, predicted, average):
    return metrics.f1_score(truth.iloc[:, 0], predicted.iloc[:, 0], average=average, zero_division=0)


INDEPENDENT = {
    "aes2": qwk,
    "commonlit-readability": rmse,
    "commonlit-summaries": rmse,
    "detect-ai-text": auc,
    "feedback-ell": rmse,
    "jigsaw-toxicity": auc,
    "us-patent": pearson,
}


def scored(name, submission, truth):
    """The competition's score of a submission, computed without fb3."""
    columns = [column for column in truth if column in submission]
    if name == "feedback-effectiveness":
        classes = sorted(submission.columns)
        shares = submission[classes].astype(float)
        return metrics.log_loss(truth.iloc[:, 0], shares.div(shares.sum(axis=1), axis=0), labels=classes)
    if name in ("text-classification", "emoji"):
        return f1(truth, submission, "macro")
    if name == "wechat-2022":
        upper = [table.map(lambda label: label[:2]) for table in (truth, submission)]
        pairs = ((truth, submission), upper)
        return np.mean([f1(*pair, average) for pair in pairs for average in ("macro", "micro")])
    return INDEPENDENT[name](truth[columns].astype(float).to_numpy(), submission[columns].astype(float).to_numpy())


def read(path):
    return pd.read_csv(path, dtype=str, keep_default_na=False, index_col=0)


def last_cell():
    """The last cell of the inference notebook, which shows the submission: an error there fails the notebook."""
    return "".join(read_json(find_notebook("inference"))["cells"][-1]["source"])


@pytest.mark.parametrize("name", FORMS)
def test_train_pack_predict_and_score(name, tmp_path):
    data, out = write_form(name, tmp_path / "data"), tmp_path / "submission.csv"
    competition = load_competition(name)
    run = train(load_recipe("tiny", SMALL, competition=name), data, tmp_path / "run").path
    assert load_recipe(run / "recipe.yaml").competition == competition.competition
    bundle = write_bundle([run], tmp_path / "bundle")
    assert bundle.manifest.get("competition") == competition.competition
    table = infer(bundle.path, data, out, strict=True)
    exec(last_cell(), {"submission": table})
    sample = next(data.glob("sample_submission*"), tmp_path / "truth.csv")
    if name == "wechat-2022":
        first = (tmp_path / "truth.csv").read_text().splitlines()[0]
        assert not out.read_text().startswith("id")
        out.write_text(f"{first}\n{out.read_text()}")
    submission, wanted, truth = read(out), read(sample), read(tmp_path / "truth.csv")
    assert list(submission.columns) == list(wanted.columns)
    assert list(submission.index) == list(wanted.index)
    found = score_files(out, tmp_path / "truth.csv", metric=competition.metric)
    assert found.overall == pytest.approx(scored(name, submission, truth.loc[submission.index]), abs=1e-5)


def edited(path, change):
    """A table with some of its cells changed, written as it was."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    change(table)
    table.to_csv(path, index=False)


def first_cell(column, value):
    def change(table):
        table.loc[0, column] = value

    return change


MISTAKES = {
    "feedback-ell": (
        "aes2",
        None,
        r"no column \['text_id', .*=essay_id .*=\[score\]' would fit; or --competition aes2, whose",
    ),
    "aes2": (
        "aes2",
        ("train.csv", first_cell("score", "0")),
        "1 scores outside 1.0-6.0, .* such as task.minimum=0 task.maximum=6",
    ),
    "commonlit-readability": (
        "commonlit-readability",
        ("train.csv", first_cell("target", "")),
        r"1 cells hold no number, first '' in row 1 \(id .*\), column target",
    ),
    "commonlit-summaries": ("commonlit-summaries", "prompts_train.csv", "prompts_train.csv: no such file; tables in"),
    "detect-ai-text": ("aes2", None, "train_essays.csv: no such file; .* data.files.train=train.csv would fit"),
    "emoji": ("emoji", "features_efficientnet_lite0.npz", r"holds none of \['features_efficientnet_lite0.npz'\]"),
    "feedback-effectiveness": (
        "feedback-effectiveness",
        ("train.csv", first_cell("discourse_effectiveness", "adequate")),
        "1 labels are of no known class, first adequate in row 1 .* the classes are .*: mend the file, or name all",
    ),
    "jigsaw-toxicity": (
        "jigsaw-toxicity",
        "train.csv.zip",
        r"train.csv: no such file; tables in .*: \['sample_submission.csv.zip', 'test.csv.zip', 'test_labels",
    ),
    "text-classification": (
        "us-patent",
        None,
        r"no column \['text', 'label'\]; .*; or --competition us-patent, whose columns",
    ),
    "us-patent": ("us-patent", ("train.csv", lambda t: t.pop("score")), r"no column \['score'\]; it has"),
    "wechat-2022": ("wechat-2022", "annotations/labeled.json", r"labeled.json: no such file; .*: \['test_a.json'\]"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_the_commonest_mistake_of_each_names_the_mend(name, tmp_path):
    form, damage, words = MISTAKES[name]
    data = write_form(form, tmp_path / "data")
    recipe = load_recipe("tiny", SMALL, competition=name)
    if isinstance(damage, tuple):
        edited(data / damage[0], damage[1])
    elif damage:
        (data / damage).unlink()
    with pytest.raises(Fb3Error, match=words):
        train(recipe, data, tmp_path / "run", folds=[0])


def test_a_folder_too_high_and_files_still_packed_are_told(tmp_path):
    write_form("aes2", tmp_path / "data")
    recipe = load_recipe("tiny", SMALL, competition="aes2")
    with pytest.raises(Fb3Error, match=f"train.csv: no such file; .*; there is one in {tmp_path / 'data'}"):
        train(recipe, tmp_path, tmp_path / "run")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "my-competition.zip").write_bytes(b"PK")
    with pytest.raises(Fb3Error, match=r"unpack my-competition\.zip first"):
        train(recipe, tmp_path / "packed", tmp_path / "run")
