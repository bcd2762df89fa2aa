"""Estimators on fixed features: the same predictions as scikit-learn's own, the same run folders as fine-tuned runs."""

import json
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge, RidgeCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_union
from sklearn.svm import SVR
from transformers import AutoConfig, AutoModel, AutoTokenizer
from typer.testing import CliRunner

from fb3.bundles.int8_scales import calibrate
from fb3.bundles.packing import write_bundle
from fb3.bundles.parity import replay
from fb3.cli import app
from fb3.data.folds import split_hash
from fb3.data.text_statistics import text_statistics
from fb3.ensembles.ensemble import weigh
from fb3.errors import Fb3Error, Stopped
from fb3.prediction.estimators import embeddings as embeddings_module
from fb3.prediction.fold_prediction import predict_fold
from fb3.prediction.member_inputs import encode, member_flops, passes
from fb3.prediction.run_flops import fold_flops, trained_run
from fb3.pseudo_labels.teachers import read_teachers
from fb3.recipe import Recipe, load_recipe
from fb3.recipe.estimator import SvrSettings
from fb3.recipe.load import overridden
from fb3.recipe.member_recipe import member_recipe
from fb3.recipe.pseudo import PseudoSettings
from fb3.runs.checkpoint import read_weights, write_weights
from fb3.runs.joining import merge
from fb3.runs.run_folder import Member
from fb3.runs.scores import caveats
from fb3.submission.device_pool import share_by_tokens
from fb3.submission.fold_queue import FoldTimes
from fb3.submission.inference import infer
from fb3.system.files import read_json, sha256, write_json, write_text
from fb3.training.estimators import fitting
from fb3.training.run import train
from fb3.verification.check import verify
from tests.conftest import copied

SCORES = ["cohesion", "syntax", "vocabulary", "phraseology", "grammar", "conventions"]
SMALL = ["folds.count=2", "data.max_length=40", "train.precision=fp32", "predict.precision=fp32"]
OWN = {"lightgbm": ["estimator.least_essays=3", "estimator.rounds=20"], "knn": ["estimator.neighbours=7"]}


def recipe_of(kind, *features, base=None, statistics=True, overrides=()):
    return member_recipe(base or Recipe(), kind, features, [*SMALL, *OWN.get(kind, []), *overrides], statistics)


def embeddings(encoder, **more):
    return {"kind": "embeddings", "encoder": str(encoder), **more}


@pytest.fixture(scope="module")
def members(competition, tiny_bert, tmp_path_factory):
    """A run of each estimator of numbers, on vectors and statistics, and one on terms."""
    pytest.importorskip("lightgbm")
    out = tmp_path_factory.mktemp("members")
    for kind in ("svr", "ridge", "lightgbm", "knn"):
        train(recipe_of(kind, embeddings(tiny_bert)), competition, out / kind)
    terms = [{"kind": "tfidf"}, {"kind": "tfidf", "of": "characters", "shortest": 2, "longest": 4}]
    train(recipe_of("ridge", *terms, statistics=False), competition, out / "tfidf")
    return out


def table_of(competition, name="train"):
    return pd.read_csv(competition / f"{name}.csv")


def plain_vectors(folder, texts, layer=-1):
    """An encoder's mean vectors by transformers alone, a text at a time."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    out = []
    for text in texts:
        with torch.no_grad():
            inputs = tokenizer(text, truncation=True, max_length=40, return_tensors="pt")
            states = model(input_ids=inputs["input_ids"], output_hidden_states=True).hidden_states[layer][0]
        mean = states.mean(0)
        out.append((mean / mean.norm()).half().numpy())
    return np.stack(out).astype(np.float64)


def by_hand(blocks, statistics, train_rows):
    """The features as docs/members.md describes them."""
    scaled = []
    for block in blocks:
        centred = block - block[train_rows].mean(0)
        scaled.append(centred / np.sqrt(block[train_rows].var(0).sum()))
    mean, std = statistics[train_rows].mean(0), statistics[train_rows].std(0)
    varies = std > 1e-4 * np.maximum(np.abs(mean), 1e-4)
    standard = np.where(varies, (statistics - mean) / np.where(varies, std, 1), 0).clip(-4, 4)
    return np.concatenate([*scaled, standard * np.sqrt(0.3 / varies.sum())], 1)


def own_prediction(kind, x, y, x_new):
    """Predictions by the libraries' own objects."""
    if kind == "svr":
        columns = []
        for truth in y.T:
            mean, std = truth.mean(), truth.std()
            columns.append(SVR(C=1.0, epsilon=0.1, tol=1e-5).fit(x, (truth - mean) / std).predict(x_new) * std + mean)
        return np.stack(columns, 1)
    if kind == "ridge":
        return RidgeCV(np.logspace(-3, 3, 13), alpha_per_target=True).fit(x, y).predict(x_new)
    if kind == "knn":
        return KNeighborsRegressor(7, metric="cosine", weights="distance").fit(x, y).predict(x_new)
    raise ValueError(kind)


@pytest.mark.parametrize("kind", ["svr", "ridge", "knn"])
def test_predictions_are_scikit_learns_own_on_features_computed_elsewhere(kind, members, competition, tiny_bert):
    essays, oof = table_of(competition), pd.read_csv(members / kind / "oof.csv").set_index("text_id")
    folds = pd.read_csv(members / kind / "folds.csv").set_index("text_id")["fold"]
    vectors = plain_vectors(tiny_bert, essays["full_text"])
    kept = load_file(members / "svr" / "features" / "0" / "vectors.safetensors")["vectors"].astype(np.float64)
    np.testing.assert_allclose(kept, vectors, atol=5e-4)  # a digit of fp16
    statistics = text_statistics(essays["full_text"].tolist()).astype(np.float64)
    for fold in (0, 1):
        valid = (essays["text_id"].map(folds) == fold).to_numpy()
        rows = np.flatnonzero(~valid)
        x, y = by_hand([kept], statistics, rows), essays[SCORES].to_numpy(np.float32).astype(np.float64)
        own = own_prediction(kind, x[rows], y[rows], x[valid]).clip(1, 5)
        np.testing.assert_allclose(oof.loc[essays["text_id"][valid], SCORES].to_numpy(), own, atol=1e-5)


def test_lightgbms_text_model_predicts_as_the_booster_did(members):
    lightgbm = pytest.importorskip("lightgbm")
    files = sorted((members / "lightgbm" / "fold0").glob("lightgbm*.txt"))
    assert len(files) == len(SCORES)
    assert all(lightgbm.Booster(model_file=str(file)).num_trees() == 20 for file in files)
    assert pd.read_csv(members / "lightgbm" / "oof.csv")[SCORES].std().min() > 0.01


def test_terms_are_scikit_learns_own(members, competition):
    essays = table_of(competition)
    folds = pd.read_csv(members / "tfidf" / "folds.csv").set_index("text_id")["fold"]
    oof = pd.read_csv(members / "tfidf" / "oof.csv").set_index("text_id")
    valid = (essays["text_id"].map(folds) == 0).to_numpy()
    shared = {"sublinear_tf": True, "min_df": 3}
    union = make_union(
        TfidfVectorizer(ngram_range=(1, 2), **shared),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), **shared),
    )
    x = union.fit_transform(essays["full_text"][~valid])
    fold = load_file(members / "tfidf" / "fold0" / "model.safetensors")
    own = Ridge(fold["alpha"], solver="sparse_cg", tol=1e-8).fit(x, essays[SCORES][~valid].to_numpy())
    wanted = own.predict(union.transform(essays["full_text"][valid])).clip(1, 5)
    np.testing.assert_allclose(oof.loc[essays["text_id"][valid], SCORES].to_numpy(), wanted, atol=1e-5)
    vocabulary = json.loads((members / "tfidf" / "fold0" / "vocabulary0.json").read_text())["terms"]
    assert vocabulary == union.transformer_list[0][1].get_feature_names_out().tolist()


def test_runs_pack_verify_and_predict_together_with_a_fine_tuned_one(members, run, competition, tmp_path, capsys):
    paths = [members / kind for kind in ("svr", "ridge", "lightgbm", "knn", "tfidf")]
    for path in paths:
        report = verify(path, essays=5)
        assert report.passed, report.text()
    bundle = write_bundle([*paths, run], tmp_path / "bundle", check=replay(None))
    assert verify(bundle.path, competition, essays=5).passed
    assert not [file for file in bundle.path.rglob("*") if file.suffix in (".pkl", ".pickle", ".joblib")]
    packed = {file.parent.parent.parent.name for file in bundle.path.glob("runs/*/features/0/vectors.safetensors")}
    assert packed == {"svr", "knn"}, "only they compare with training essays"
    infer(bundle.path, competition, tmp_path / "s.csv", strict=True)
    report = json.loads((tmp_path / "s.report.json").read_text())
    assert [fold["status"] for fold in report["folds"]] == ["used"] * 12
    assert "vectors" not in capsys.readouterr().out


def test_each_test_essay_gets_what_scikit_learn_gives_it(members, competition, tiny_bert, tmp_path):
    bundle = write_bundle([members / "svr"], tmp_path / "bundle")
    found = infer(bundle.path, competition, tmp_path / "s.csv", strict=True).set_index("text_id")
    essays, new = table_of(competition), table_of(competition, "test")
    folds = essays["text_id"].map(pd.read_csv(members / "svr" / "folds.csv").set_index("text_id")["fold"])
    kept = load_file(members / "svr" / "features" / "0" / "vectors.safetensors")["vectors"].astype(np.float64)
    vectors = np.concatenate([kept, plain_vectors(tiny_bert, new["full_text"])])
    statistics = text_statistics([*essays["full_text"], *new["full_text"]]).astype(np.float64)
    y, total = essays[SCORES].to_numpy(np.float32).astype(np.float64), 0
    for fold in (0, 1):
        rows = np.flatnonzero(folds != fold)
        x = by_hand([vectors], statistics, rows)
        total = total + own_prediction("svr", x[rows], y[rows], x[len(essays) :])
    np.testing.assert_allclose(found.loc[new["text_id"], SCORES], (total / 2).clip(1, 5), atol=2e-3)  # fp16 vectors


def test_without_layers_the_last_four_stand_side_by_side(competition, tiny_bert, tmp_path):
    deep = copied(tiny_bert, tmp_path / "deep")
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(tiny_bert, num_hidden_layers=5)
    AutoModel.from_config(config).save_pretrained(deep)
    run = train(recipe_of("ridge", embeddings(deep)), competition, tmp_path / "run").path
    kept = load_file(run / "features" / "0" / "vectors.safetensors")["vectors"].astype(np.float64)
    texts = table_of(competition)["full_text"]
    np.testing.assert_allclose(
        kept, np.concatenate([plain_vectors(deep, texts, -n) for n in (1, 2, 3, 4)], 1), atol=5e-4
    )


def test_vectors_are_computed_once_for_all_folds_and_a_stopped_run_goes_on(
    competition, tiny_bert, tmp_path, monkeypatch
):
    module, computed = embeddings_module, []
    real = module._compute
    monkeypatch.setattr(
        module,
        "_compute",
        lambda load, encoded, rows, how: computed.append(len(rows)) or real(load, encoded, rows, how),
    )
    monkeypatch.setattr(module, "_VECTORS", type(module._VECTORS)())
    monkeypatch.setattr("fb3.training.estimators.estimator_run._AT_ONCE", 25)
    recipe = recipe_of("ridge", embeddings(tiny_bert, layers=[1]))
    reasons = iter(["", "", "time is up"])
    with monkeypatch.context() as patch:
        patch.setattr("fb3.training.estimators.estimator_run.stop_reason", lambda session: next(reasons))
        with pytest.raises(Stopped, match="vectors of 50 of 60 essays are kept"):
            train(recipe, competition, tmp_path / "run")
    module._VECTORS.clear()
    train(recipe, competition, tmp_path / "run", folds=[0])
    module._VECTORS.clear()
    whole = train(recipe, competition, tmp_path / "run")
    assert computed == [25, 25, 10]
    assert whole.folds == [0, 1]
    bundle = write_bundle([tmp_path / "run"], tmp_path / "bundle")
    module._VECTORS.clear()
    infer(bundle.path, competition, tmp_path / "s.csv", strict=True)
    assert computed == [25, 25, 10, 20]


def test_a_fine_tuned_run_gives_each_fold_the_vectors_of_its_own_fold(run, competition, tmp_path):
    base = load_recipe(run / "recipe.yaml")
    overrides = ["estimator.C=2", f"folds.count={base.folds.count}", f"data.max_length={base.data.max_length}"]
    recipe = recipe_of("svr", embeddings(run, layers=[1, 2]), base=base, overrides=overrides)
    made = train(recipe, competition, tmp_path / "member")
    assert verify(made.path, essays=5).passed
    for fold in (0, 1):
        own = made.path / f"fold{fold}" / "features" / "0" / "model.safetensors"
        assert own.read_bytes() == (run / f"fold{fold}" / "model.safetensors").read_bytes()
    bundle = write_bundle([made.path], tmp_path / "bundle", check=replay(None))
    shutil.rmtree(tmp_path / "member")
    infer(bundle.path, competition, tmp_path / "s.csv", strict=True)


def test_folds_that_share_vectors_are_priced_once(members, run, competition):
    data = pd.read_csv(competition / "train.csv", dtype={"text_id": str})
    svr, tuned, tfidf = (trained_run(path) for path in (members / "svr", run, members / "tfidf"))
    assert [len(each.folds) for each in (svr, tuned, tfidf)] == [2, 2, 2]
    assert passes(svr, encode(svr, data)) == passes(tfidf, encode(tfidf, data)) == 1
    assert passes(tuned, encode(tuned, data)) == 2
    assert fold_flops(svr, competition) * 2 == pytest.approx(member_flops(svr, encode(svr, data)) / len(data))
    assert fold_flops(tuned, competition) == pytest.approx(member_flops(tuned, encode(tuned, data)) / len(data))
    assert fold_flops(tfidf, competition) > 0


def test_a_source_with_safe_labels_makes_the_estimator_a_taught_teacher(run, competition, tmp_path):
    source, base = copied(run, tmp_path / "source"), load_recipe(run / "recipe.yaml")
    safe = PseudoSettings(folder="labels", use="mix")
    write_text(base.model_copy(update={"pseudo": safe}).to_yaml(), source / "recipe.yaml")
    folds = pd.read_csv(source / "folds.csv", dtype={"text_id": str})
    made_for = {"pseudo": {"split": split_hash(folds["text_id"], folds["fold"])}}
    write_json(read_json(source / "environment.json") | made_for, source / "environment.json")
    made = train(recipe_of("ridge", embeddings(source), base=base, overrides=[]), competition, tmp_path / "member").path
    plain = train(recipe_of("ridge", embeddings(run), base=base, overrides=[]), competition, tmp_path / "plain").path
    assert [teacher.taught for path in (made, plain) for teacher in read_teachers(path)] == [True, False]


def test_a_leak_of_a_source_is_one_of_the_estimator(run, competition, tmp_path):
    leaky, base = copied(run, tmp_path / "leaky"), load_recipe(run / "recipe.yaml")
    told = PseudoSettings(folder="labels", use="mix", allow_leaks=True)
    write_text(base.model_copy(update={"pseudo": told}).to_yaml(), leaky / "recipe.yaml")
    made = train(recipe_of("ridge", embeddings(leaky), base=base, overrides=[]), competition, tmp_path / "member").path
    assert any(
        "trained on pseudo-labels of models that saw" in each
        for each in caveats(made, load_recipe(made / "recipe.yaml"))
    )
    with pytest.raises(Fb3Error, match="trained on pseudo-labels of models that saw its validation essays"):
        weigh([run, made], tmp_path / "E")
    with pytest.raises(Fb3Error, match="trained on pseudo-labels of models that saw its validation essays"):
        read_teachers(made)


def test_an_estimator_does_not_go_on_with_a_source_that_was_trained_anew(run, competition, tmp_path):
    source, base = copied(run, tmp_path / "source"), load_recipe(run / "recipe.yaml")
    recipe = recipe_of("ridge", embeddings(source), base=base, overrides=[])
    train(recipe, competition, tmp_path / "member", folds=[0])
    weights = read_weights(source / "fold0" / "model.safetensors")
    write_weights({name: each * 1.01 for name, each in weights.items()}, source / "fold0" / "model.safetensors")
    info = read_json(source / "fold0" / "fold.json")
    write_json(info | {"sha256": sha256(source / "fold0" / "model.safetensors")}, source / "fold0" / "fold.json")
    with pytest.raises(Fb3Error, match=r"fold0/fold.json: not the file that .*member was begun with; choose another"):
        train(recipe, competition, tmp_path / "member")


def test_a_fine_tuned_run_of_other_folds_is_refused(run, competition, tmp_path):
    base = load_recipe(run / "recipe.yaml")
    recipe = recipe_of("svr", embeddings(run), base=base, overrides=["folds.seed=7", f"folds.count={base.folds.count}"])
    with pytest.raises(Fb3Error, match=r"its fold 0 validates on other essays.*--recipe"):
        train(recipe, competition, tmp_path / "member")


def test_parts_of_a_run_join(members, competition, tiny_bert, tmp_path):
    recipe = recipe_of("svr", embeddings(tiny_bert))
    for fold in (0, 1):
        train(recipe, competition, tmp_path / f"part{fold}", folds=[fold])
    merged = merge([tmp_path / "part0", tmp_path / "part1"], tmp_path / "whole")
    assert verify(merged.path, essays=3).passed
    pd.testing.assert_frame_equal(pd.read_csv(merged.path / "oof.csv"), pd.read_csv(members / "svr" / "oof.csv"))


def labelled(competition, folder):
    """The competition with a class in the place of its scores, and two labels."""
    shutil.copytree(competition, folder)
    essays = table_of(competition)
    level = pd.qcut(essays["grammar"].rank(method="first"), 3, labels=["low", "middle", "high"]).astype(str)
    labels = {"long": essays["full_text"].str.len() > essays["full_text"].str.len().median(), "good": level == "high"}
    essays = essays.drop(columns=SCORES).assign(
        level=level, **{name: each.astype(int) for name, each in labels.items()}
    )
    essays.to_csv(folder / "train.csv", index=False)
    return folder, essays


@pytest.mark.parametrize("kind", ["logistic", "knn", "lightgbm"])
def test_classes_get_the_libraries_own_probabilities(kind, competition, tiny_bert, tmp_path):
    if kind == "lightgbm":
        pytest.importorskip("lightgbm")
    data, essays = labelled(competition, tmp_path / "data")
    base = load_recipe_of(["task={kind: classification}", "data.target_columns=level", "metric=log_loss"])
    made = train(recipe_of(kind, embeddings(tiny_bert), base=base), data, tmp_path / "run")
    oof, classes = pd.read_csv(made.path / "oof.csv").set_index("text_id"), ["high", "low", "middle"]
    np.testing.assert_allclose(oof[classes].sum(1), 1, atol=1e-5)
    folds = essays["text_id"].map(pd.read_csv(made.path / "folds.csv").set_index("text_id")["fold"])
    vectors = plain_vectors(tiny_bert, essays["full_text"])
    statistics = text_statistics(essays["full_text"].tolist()).astype(np.float64)
    rows, valid = np.flatnonzero(folds != 0), np.flatnonzero(folds == 0)
    x = by_hand([vectors], statistics, rows)
    own = {
        "logistic": OneVsRestClassifier(LogisticRegression(C=10.0, max_iter=2000)),
        "knn": KNeighborsClassifier(7, metric="cosine", weights="distance"),
    }
    if kind in own:
        wanted = own[kind].fit(x[rows], essays["level"][rows]).predict_proba(x[valid])
        np.testing.assert_allclose(oof.loc[essays["text_id"][valid], classes], wanted, atol=5e-3)  # fp16 vectors
    bundle = write_bundle([made.path], tmp_path / "bundle", check=replay(None))
    shutil.copy(data / "test.csv", tmp_path / "test.csv")
    infer(bundle.path, None, tmp_path / "s.csv", test=tmp_path / "test.csv", strict=True)


def load_recipe_of(overrides):
    return overridden(Recipe(), overrides)


@pytest.mark.parametrize("kind", ["logistic", "knn"])
def test_several_labels(kind, competition, tiny_bert, tmp_path):
    data, _ = labelled(competition, tmp_path / "data")
    base = load_recipe_of(["task={kind: multilabel}", "data.target_columns=[long, good]", "metric=mean_column_auc"])
    made = train(recipe_of(kind, embeddings(tiny_bert), base=base), data, tmp_path / "run")
    assert made.score.columns["long"] > 0.7, "the statistics say how long an essay is"


@pytest.mark.parametrize(
    ("kind", "base", "features", "words"),
    [
        ("svr", ["task={kind: multilabel}", "metric=auc"], [embeddings("x")], "predicts numbers.*take logistic"),
        ("ridge", ["task={kind: multilabel}", "metric=auc"], [embeddings("x")], "predicts numbers.*take logistic"),
        ("logistic", [], [embeddings("x")], "predicts labels.*take svr"),
        ("svr", [], [{"kind": "tfidf"}], "tfidf has too many.*take ridge"),
        ("knn", [], [], "estimator.features: there is none"),
        ("svm", [], [], "--model svm: .*svr"),
    ],
)
def test_estimators_that_make_no_sense_are_refused(kind, base, features, words):
    with pytest.raises(Fb3Error, match=words):
        member_recipe(load_recipe_of(base), kind, features)


@pytest.mark.parametrize("setting", ["tricks=[{kind: fgm}]", "optimizer.encoder_rate=1e-3", "task.loss=huber"])
def test_settings_of_a_fine_tuning_are_refused_beside_an_estimator(setting):
    with pytest.raises(Fb3Error, match="does nothing with an estimator"):
        member_recipe(Recipe(), "ridge", [embeddings("x")], [setting])


def test_a_missing_lightgbm_is_said_with_its_mend(competition, tiny_bert, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    with pytest.raises(Fb3Error, match=r"pip install 'fb3\[lightgbm\]'"):
        train(recipe_of("lightgbm", embeddings(tiny_bert)), competition, tmp_path / "run")


def test_damaged_files_leave_their_folds_out(members, competition, tmp_path, capsys):
    bundle = write_bundle([members / "svr", members / "tfidf"], tmp_path / "bundle").path
    vocabulary = bundle / "runs" / "tfidf" / "fold0" / "vocabulary1.json"
    vocabulary.write_text(vocabulary.read_text().replace("a", "b"))
    vectors = bundle / "runs" / "svr" / "features" / "0" / "vectors.safetensors"
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"x")
    infer(bundle, competition, tmp_path / "s.csv")
    states = {f["fold"]: f["status"] for f in json.loads((tmp_path / "s.report.json").read_text())["folds"]}
    out = "left out"
    assert states == {"svr/fold0": out, "svr/fold1": out, "tfidf/fold0": out, "tfidf/fold1": "used"}
    report = verify(bundle, competition)
    assert not report.passed


def test_int8_leaves_estimators_alone(members, tmp_path, monkeypatch):
    monkeypatch.setattr("fb3.bundles.int8_scales.cpu_has_int8", lambda: True)
    bundle = write_bundle([members / "svr"], tmp_path / "bundle", int8=calibrate(None))
    assert bundle.manifest["int8"]["worse"] == {}


def test_the_command_trains_what_its_recipe_trains(competition, tiny_bert, tmp_path):
    options = ["--data", competition, "--out", tmp_path / "a", *SMALL, "estimator.C=2", "data.text.statistics=false"]
    command = ["member", "embeddings", tiny_bert, "--model", "svr", "--layers", "1", *options]
    done = CliRunner().invoke(app, [str(each) for each in command])
    assert done.exit_code == 0, done.exception
    made = load_recipe(tmp_path / "a" / "recipe.yaml")
    assert made.estimator.C == 2
    assert not made.data.text.statistics
    train(tmp_path / "a" / "recipe.yaml", competition, tmp_path / "b")
    assert (tmp_path / "a" / "oof.csv").read_bytes() == (tmp_path / "b" / "oof.csv").read_bytes()


def test_a_kernel_too_large_for_memory_gives_the_same_machines(monkeypatch):
    rng = np.random.default_rng(0)
    x, y, settings = rng.normal(size=(60, 5)), rng.normal(size=(60, 2)), SvrSettings(kind="svr")
    whole = fitting.fit(settings, x, y, False, 0, "svr")
    monkeypatch.setattr(fitting, "KERNEL_AT_ONCE", 10)
    again = fitting.fit(settings, x, y, False, 0, "svr")
    assert whole.rows.tolist() == again.rows.tolist()
    for name in whole.tensors:
        np.testing.assert_allclose(again.tensors[name], whole.tensors[name], atol=1e-8)


def test_devices_share_the_essays(members, competition):
    """Each device's process gets all inputs as bytes, and some of the rows."""
    found, essays = read_bundle_member(members / "svr"), table_of(competition, "test")
    ids, inputs = essays["text_id"].to_numpy(), encode(found, essays)
    one = predict_fold(found, 0, inputs, ids, "cpu", shown=False)
    sent = pickle.loads(pickle.dumps(inputs))
    parts = [
        predict_fold(found, 0, sent, ids, "cpu", rows=r, shown=False) for r in share_by_tokens(sent.total_lengths, 2)
    ]
    values = pd.DataFrame(np.concatenate([part.values for part in parts]), np.concatenate([part.ids for part in parts]))
    np.testing.assert_allclose(values.loc[ids], one.values, atol=2e-3)  # batches differ, and so do digits of fp16


def read_bundle_member(run):
    return Member(run.name, run, load_recipe(run / "recipe.yaml"), [run / "fold0", run / "fold1"])


def test_a_deadline_that_has_passed_reaches_no_essay(members, competition, monkeypatch):
    monkeypatch.setattr(embeddings_module, "_VECTORS", type(embeddings_module._VECTORS)())
    found, essays = read_bundle_member(members / "knn"), table_of(competition, "test")
    late = predict_fold(found, 0, encode(found, essays), essays["text_id"].to_numpy(), "cpu", until=0.0, shown=False)
    assert late.values.shape == (0, 6)


def test_the_first_fold_pays_for_the_vectors_of_all(members, competition):
    times, found = FoldTimes(), read_bundle_member(members / "svr")
    times.add(found, encode(found, table_of(competition, "test")))
    times.timed("svr", 8.0)
    assert times.estimate("svr") == 0.0
    times.timed("svr", 0.5)
    assert times.estimate("svr") == 0.5
    times.flops["other"] = times.flops["svr"]
    assert times.estimate("other") == pytest.approx(1.5 * 8.0), "its speed is that of the first fold"
