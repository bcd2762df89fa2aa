"""`fb3 init`: the files found, the settings guessed and told, the recipe written."""

import zipfile
from unittest.mock import ANY

import numpy as np
import pytest

from fb3.errors import Fb3Error
from fb3.initial_recipe.competition_tables import read_tables
from fb3.initial_recipe.recipe_yaml import recipe_text, write_initial_recipe
from fb3.initial_recipe.setting_guesses import guess_settings
from fb3.recipe import builtin_text, load_recipe
from fb3.training.run import train
from tests.conftest import TINY
from tests.initial_recipe.forms import FORMS, Draws, split, write, write_form
from tests.picture_data import drawn

SMALL = [*TINY, "data.max_length=32", "train.batch_size=16", "folds.count=2"]
OPEN = {"task.minimum": None, "task.maximum": None}
GUESSED = {
    "aes2": {"task.kind": "regression", "task.minimum": 1.0, "task.maximum": 6.0, "metric": "qwk"},
    "commonlit-readability": {"data.target_columns": ["target"], "task.kind": "regression", **OPEN, "metric": "rmse"},
    "commonlit-summaries": {"data.target_columns": ["content", "wording"], **OPEN, "metric": "mcrmse"},
    "detect-ai-text": {"data.target_columns": ["generated"], "task.kind": "multilabel", "metric": "auc"},
    "emoji": {
        "data.target_columns": ["category"],
        "task.kind": "classification",
        "data.files": ANY,
        "data.frames": {"files": ["features_efficientnet_lite0.npz"]},
    },
    "feedback-effectiveness": {"task.classes": ["Ineffective", "Adequate", "Effective"], "metric": "log_loss"},
    "feedback-ell": {"task.kind": "regression", "task.maximum": 5.0, "metric": "mcrmse"},
    "jigsaw-toxicity": {"data.text_column": "comment_text", "task.kind": "multilabel", "metric": "mean_column_auc"},
    "text-classification": {"data.target_columns": ["label"], "task.kind": "classification", "metric": "macro_f1"},
    "us-patent": {"data.text_column": "target", "data.target_columns": ["score"], "task.maximum": 1.0},
    "wechat-2022": {
        "task.kind": "classification",
        "data.frames": {"files": ["zip_feats/labeled.zip", "zip_feats/test_a.zip"]},
    },
}
PERHAPS = {
    "commonlit-summaries": {"folds.group_column": "prompt_id"},
    "detect-ai-text": {"folds.group_column": "prompt_id"},
    "feedback-effectiveness": {
        "folds.group_column": "essay_id",
        "data.text": {"template": "{discourse_text}; {discourse_type}"},
    },
    "us-patent": {"folds.group_column": "anchor"},
    "wechat-2022": {"data.text": {"template": "{title}; {asr}; {ocr}"}},
}


def disaster(folder, draws):
    """Short messages with a keyword, which is mostly missing; 0 or 1, and the sample asks for the label."""
    rows = [[n, draws.rng.choice(["", "", "fire"]), t, int(n % 3 == 0)] for n, t in enumerate(draws.texts(56))]
    split(folder, ["id", "keyword", "text"], ["target"], rows, {"target": 0})


def percent(folder, draws):
    """Scores from 0 to 100 with fractions, ids of another name, no numbers from 1 up."""
    rows = [[f"r{n}", n // 4, t, round(draws.rng.uniform(0, 100), 2)] for n, t in enumerate(draws.texts(56))]
    split(folder, ["review", "author_id", "body"], ["usefulness"], rows, {"usefulness": 50.0})


def authors(folder, draws):
    """A probability for each of three authors, whose column train calls otherwise."""
    names = ["EAP", "HPL", "MWS"]
    rows = [[f"id{n:05}", t, draws.rng.choice(names)] for n, t in enumerate(draws.texts(56))]
    split(folder, ["id", "text"], ["author"], rows, {"EAP": 0.4, "HPL": 0.3, "MWS": 0.3})


def pictures(folder, draws):
    """Products of many numbered categories, a picture each in a folder below, and another zip beside them."""
    rows = [[f"p{n}", t, 100 + n % 16] for n, t in enumerate(draws.texts(56))]
    split(folder, ["product", "title"], ["category"], rows, {"category": 100})
    for n in range(56):
        path = folder / "images" / ("train" if n < 48 else "test") / f"p{n}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn(n).save(path)
    with zipfile.ZipFile(folder / "licence.zip", "w") as archive:
        archive.writestr("p1.txt", "free")


OTHERS = {
    disaster: {"data.text_column": "text", "task.kind": "classification", "metric": "macro_f1"},
    percent: {"data.id_column": "review", "data.text_column": "body", **OPEN, "task.standardise": True},
    pictures: {"data.text_column": "title", "task.kind": "classification", "metric": "macro_f1"},
    authors: {"data.target_columns": ["author"], "task.classes": ["EAP", "HPL", "MWS"], "metric": "log_loss"},
}


def test_pictures_are_suggested_with_an_image_encoder_to_choose(tmp_path):
    _, suggested = guesses(written(tmp_path / "data", pictures))
    assert suggested["data.frames"]["files"] == ["images/test", "images/train"]
    assert "encoder" in suggested["data.frames"]
    assert "folds.group_column" not in suggested


def test_files_of_which_few_rows_have_frames_are_no_frames(tmp_path):
    data = written(tmp_path / "data", pictures)
    for n in range(30):
        (data / "images" / "train" / f"p{n}.jpg").unlink()
    assert "data.frames" not in guesses(data)[1]


def test_a_zip_that_cannot_be_opened_is_no_file_of_frames(tmp_path):
    data = written(tmp_path / "data", pictures)
    for name, place in (("encrypted", 6), ("of_another_method", 8)):  # flags and method, in both headers
        with zipfile.ZipFile(data / f"{name}.zip", "w") as archive:
            archive.writestr("p1.npy", b"frames")
        content = bytearray((data / f"{name}.zip").read_bytes())
        central = content.find(b"PK\x01\x02") + 2
        content[place] = content[central + place] = 99
        (data / f"{name}.zip").write_bytes(content)
    assert guesses(data)[1]["data.frames"]["files"] == ["images/test", "images/train"]


def test_a_folder_that_may_not_be_read_is_passed_over(tmp_path, monkeypatch):
    data = written(tmp_path / "data", pictures)
    (tmp_path / "above").mkdir()
    data.rename(tmp_path / "above" / "data")
    (tmp_path / "above" / "lost+found").mkdir()
    (tmp_path / "above" / "lost+found" / "train.csv").touch()
    monkeypatch.setattr("os.access", lambda path, mode: path.name != "lost+found")  # root may read all
    assert read_tables(tmp_path / "above").train.name == "data/train.csv"


def test_a_built_in_competition_without_its_vectors_says_how_to_make_them(tmp_path):
    data = write_form("emoji", tmp_path / "data")
    (data / "features_efficientnet_lite0.npz").unlink()
    for name in ("labeled", "test"):
        ids = [line.partition(",")[0] for line in (data / f"{name}.csv").read_text().splitlines()[1:]]
        frames = np.zeros((len(ids), 8, 8, 3), np.uint8)
        np.savez(data / f"frames_{name}.npz", ids=ids, offsets=np.arange(len(ids) + 1), frames=frames)
    lines = write_initial_recipe(data, tmp_path / "mine.yaml")
    assert lines[1].startswith(f"WARNING: {data} holds none of ['features_efficientnet_lite0.npz']")
    assert lines[2].startswith("frames_labeled.npz, frames_test.npz hold pictures; ")
    assert lines[2].endswith(f"--data {data} --out {data / 'features_efficientnet_lite0.npz'}")
    assert "data.frames=null" in lines[3]


def test_a_column_that_is_empty_in_half_of_the_rows_joins_the_text(tmp_path):
    rows = [[f"i{n}", f"title {n}", ["", "words read in it"][n % 2], "ab"[n % 3 == 0]] for n in range(56)]
    split(tmp_path, ["id", "title", "ocr"], ["label"], rows, {"label": "a"})
    assert guesses(tmp_path)[0]["data.text"] == {"template": "{title}; {ocr}"}


def guesses(folder):
    settings = guess_settings(read_tables(folder))
    return tuple({s.key: s.value for s in settings if s.suggested == suggested} for suggested in (False, True))


def written(folder, make):
    folder.mkdir()
    make(folder, Draws(5))
    return folder


@pytest.mark.parametrize("name", FORMS)
def test_a_built_in_competition_is_found_by_its_files_and_could_be_guessed(name, tmp_path):
    data, out = write_form(name, tmp_path / "data"), tmp_path / "mine.yaml"
    lines = write_initial_recipe(data, out)
    assert out.read_text() == builtin_text(name, "competition")
    assert lines[0].startswith(f"these are the files of {name}; ")
    assert f"next: fb3 train tiny --competition {name} --data {data}" in lines[-2]
    used, suggested = guesses(data)
    assert used | GUESSED[name] == used
    assert suggested == PERHAPS.get(name, {}) or name == "commonlit-summaries"
    out.write_text(recipe_text(guess_settings(read_tables(data))))
    load_recipe(out)
    assert train(load_recipe("tiny", SMALL, competition=out), data, tmp_path / "run", folds=[0]).path.is_dir()


@pytest.mark.parametrize("make", OTHERS)
def test_other_files_are_guessed_and_train_at_once(make, tmp_path):
    data, out = written(tmp_path / "data", make), tmp_path / "mine.yaml"
    lines = write_initial_recipe(data, out)
    used, suggested = guesses(data)
    assert used | OTHERS[make] == used
    text = out.read_text()
    for line in lines[: len(used) + len(suggested)]:
        assert line.rpartition(": ")[2] in text, "each reason that is told stands in the file"
    assert "metric: " in text.partition("(a guess)")[2]
    train(load_recipe(out, [*SMALL, "model.backbone=scratch"]), data, tmp_path / "run", folds=[0])


def test_files_are_found_by_their_names_and_columns(tmp_path):
    data = write_form("aes2", tmp_path / "data")
    write(data / "train_extra_columns.csv", ["essay_id", "length"], [["x", 1]])
    write(data / "test_lengths.csv", ["essay_id", "length"], [["x", 1]])
    tables = read_tables(data)
    assert (tables.train.name, tables.test.name, tables.sample.name) == (
        "train.csv",
        "test.csv",
        "sample_submission.csv",
    )
    (data / "sample_submission.csv").unlink()
    used, _ = guesses(data)
    assert used["data.target_columns"] == ["score"]
    assert used["data.files"]["sample"] is None


def test_mistakes_name_the_mend(tmp_path):
    data, out = write_form("aes2", tmp_path / "data"), tmp_path / "mine.yaml"
    (tmp_path / "empty").mkdir()
    (tmp_path / "zips").mkdir()
    (tmp_path / "zips" / "my-competition.zip").write_bytes(b"PK")
    cases = [
        ((tmp_path / "nowhere", out), "no such folder; give the folder of the competition's files with --data"),
        ((tmp_path / "empty", out), "no table with 'train' in its name; there is no table at all"),
        ((tmp_path, out), f"did you mean --data {data}"),
        ((tmp_path / "zips", out), f"unpack my-competition.zip: unzip -d {tmp_path / 'zips'}"),
        ((data, out, "us-patent"), r"not the files of us-patent: train.csv has no column \['id', 'target', 'anchor'"),
        ((data, out, "aes"), "no built-in competition 'aes'; did you mean 'aes2'"),
    ]
    for arguments, words in cases:
        with pytest.raises(Fb3Error, match=words):
            write_initial_recipe(*arguments)
    assert not out.exists()
    write_initial_recipe(data, out, "aes2")
    with pytest.raises(Fb3Error, match="is there already; give another --out, or delete it"):
        write_initial_recipe(data, out)
    write(data / "train.csv", ["essay_id", "full_text"], [["a", "A text."], ["b", "Another."]])
    with pytest.raises(Fb3Error, match=r"all its columns are in test\.csv too"):
        write_initial_recipe(data, tmp_path / "other.yaml")
