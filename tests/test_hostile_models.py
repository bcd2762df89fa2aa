"""Bundles, runs and their checkpoints from elsewhere: read as packed, or refused by name."""

import hashlib
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from fb3.bundles.bundle import read_bundle, verify_bundle
from fb3.bundles.packing import write_bundle
from fb3.data.tokenizer import load_tokenizer
from fb3.errors import Fb3Error
from fb3.models.backbone import random_encoder
from fb3.runs import save_folder
from fb3.runs.checkpoint import load_fold, read_weights
from fb3.runs.fold_json import is_finished
from fb3.submission.inference import infer
from fb3.system.files import read_json, sha256, write_json
from fb3.upload.dataset import _zip_folders, check_limits
from tests.conftest import copied
from tests.hostile import damaged, fuzz, swapped, told

FOLD = "runs/tiny/fold0"


@pytest.fixture(scope="module")
def packed(bundle, tmp_path_factory):
    """A copy of the bundle, whose manifest the examples write over."""
    return copied(bundle, tmp_path_factory.mktemp("hostile") / "bundle")


@pytest.fixture(scope="module")
def trained(run, tmp_path_factory):
    """A copy of the run, likewise."""
    return copied(run, tmp_path_factory.mktemp("hostile") / "tiny")


def dumped(tree):
    return json.dumps(tree).encode()


def changed(bundle, to, name, content):
    """A copy of a bundle with another file in it, for which the manifest vouches."""
    copy = copied(bundle, to)
    manifest = read_json(copy / "manifest.json")
    if content is None:
        del manifest["files"][name]
    else:
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(content)
        manifest["files"][name] = {"size": len(content), "sha256": sha256(copy / name)}
    write_json(manifest, copy / "manifest.json")
    return copy


@fuzz
@given(data=st.data())
def test_a_manifest_of_any_form(data, packed, bundle):
    tree = read_json(bundle / "manifest.json")
    tree["files"] = {name: tree["files"][name] for name in (f"{FOLD}/fold.json", "runs/tiny/recipe.yaml")}
    content = data.draw(st.one_of(swapped(tree).map(dumped), damaged(dumped(tree))))
    (packed / "manifest.json").write_bytes(content)

    def read(path):
        packed = verify_bundle(path)
        return [packed.check_fold(fold) for member in packed.members() for fold in member.folds]

    told(read, packed, "manifest.json")


WAYS_OUT = ["../x", "/etc/passwd", "runs/../../x", "runs//x", "./x", "", "a\0b", "runs/"]


@pytest.mark.parametrize("name", WAYS_OUT)
def test_a_name_that_leads_out_of_the_bundle(name, packed, bundle):
    manifest = read_json(bundle / "manifest.json")
    entry = {"size": 1, "sha256": "0" * 64}
    (packed.parent / "x").write_text("x")
    write_json({**manifest, "files": {name: entry, **manifest["files"]}}, packed / "manifest.json")
    with pytest.raises(Fb3Error, match=r"manifest\.json: .* leads out of the bundle"):
        verify_bundle(packed)
    for run in ({"name": name, "folds": [0]}, {"name": "..", "folds": [0]}):
        write_json({**manifest, "runs": [run]}, packed / "manifest.json")
        with pytest.raises(Fb3Error, match=r"manifest\.json: want files by their names, and runs"):
            read_bundle(packed)


@pytest.mark.parametrize("folds", [None, 3, ["0"], [True], [-1], [10**30], [0, 0], [0.0], [[0]]])
def test_folds_that_are_no_numbers(folds, packed, bundle):
    manifest = read_json(bundle / "manifest.json")
    write_json({**manifest, "runs": [{"name": "tiny", "folds": folds}]}, packed / "manifest.json")
    with pytest.raises(Fb3Error, match=r"manifest\.json: want files"):
        read_bundle(packed)


def test_a_link_out_of_the_bundle_is_refused_where_it_is_made_and_sent(bundle, tmp_path):
    linked = copied(bundle, tmp_path / "bundle")
    name = "runs/tiny/scores.json"
    (linked / name).rename(tmp_path / "elsewhere.json")
    (linked / name).symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(Fb3Error, match=rf"{name}: a link out of the bundle"):
        verify_bundle(linked)
    mounted = tmp_path / "mounted"
    mounted.symlink_to(bundle)
    verify_bundle(mounted)


def test_only_what_the_manifest_names_is_sent(bundle, tmp_path):
    import zipfile

    more = copied(bundle, tmp_path / "bundle")
    for name in ("runs/tiny/id_rsa", "fb3/__pycache__/a.pyc", "mine.txt"):
        (more / name).parent.mkdir(exist_ok=True)
        (more / name).write_text("private")
    _zip_folders(more, tmp_path / "stage", {*read_json(more / "manifest.json")["files"], "manifest.json"})
    sent = {p.name for p in (tmp_path / "stage").iterdir()}
    assert sent == {"fb3.zip", "runs.zip", "manifest.json", "dataset-metadata.json"}
    for name in ("fb3.zip", "runs.zip"):
        with zipfile.ZipFile(tmp_path / "stage" / name) as archive:
            assert not [inner for inner in archive.namelist() if "id_rsa" in inner or "pyc" in inner]
            assert archive.namelist()


@pytest.mark.parametrize("missing", [f"{FOLD}/model.safetensors", f"{FOLD}/fold.json"])
def test_a_fold_that_the_manifest_does_not_vouch_for_is_left_out(missing, bundle, competition, tmp_path, capsys):
    part = changed(bundle, tmp_path / "bundle", missing, None)
    with pytest.raises(Fb3Error, match=rf"{missing}' in it is missing"):
        infer(part, competition, tmp_path / "s.csv", strict=True)
    assert np.isfinite(infer(part, competition, tmp_path / "s.csv").iloc[:, 1:]).all(axis=None)
    assert "WARNING: without tiny/fold0" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["encoder/config.json", "encoder/tokenizer.json", "recipe.yaml"])
def test_a_run_that_the_manifest_does_not_vouch_for_leaves_the_means(name, bundle, competition, tmp_path):
    part = changed(bundle, tmp_path / "bundle", f"runs/tiny/{name}", None)
    with pytest.raises(Fb3Error, match=rf"no run in it can be used.*{name}' in it is missing"):
        infer(part, competition, tmp_path / "s.csv")
    assert np.isfinite(pd.read_csv(tmp_path / "s.csv").iloc[:, 1:]).all(axis=None)


@pytest.mark.parametrize(
    "means", [None, [], {}, "x", {"cohesion": float("nan")}, {"cohesion": "x"}, {"cohesion": 10**400}]
)
def test_means_of_any_form_cost_no_first_file(means, bundle, competition, tmp_path, capsys, monkeypatch):
    info = read_json(bundle / FOLD / "fold.json")
    if isinstance(means, dict) and means:
        means = {**info["target_means"], **means}
    odd = changed(bundle, tmp_path / "bundle", f"{FOLD}/fold.json", dumped({**info, "target_means": means}))
    with pytest.raises(Fb3Error, match="no time"):
        infer(odd, competition, tmp_path / "s.csv", deadline="0.000001s")
    other = read_json(bundle / "runs/tiny/fold1/fold.json")["target_means"]
    stands = pd.read_csv(tmp_path / "s.csv")
    np.testing.assert_allclose(stands[list(other)], [list(other.values())] * len(stands), atol=1e-5)
    assert "its means are not used" in capsys.readouterr().err


@fuzz
@given(data=st.data())
def test_a_folds_description_of_any_form(data, trained, run):
    tree = read_json(run / "fold0" / "fold.json")
    content = data.draw(st.one_of(swapped(tree).map(dumped), damaged(dumped(tree))))
    path = trained / "fold0" / "fold.json"
    path.write_bytes(content)
    told(is_finished, path.parent, "fold.json")
    shutil.copyfile(run / "fold0" / "fold.json", path)


@fuzz
@given(data=st.data())
def test_an_upload_description_of_any_form(data, packed):
    tree = {"id": "me/a-good-slug", "title": "A title", "licenses": [{"name": "other"}]}
    (packed / "dataset-metadata.json").write_bytes(data.draw(swapped(tree).map(dumped)))
    told(check_limits, packed, "dataset-metadata.json", "--id", "--title")


@fuzz
@given(data=st.data())
def test_weights_of_any_bytes(data, trained):
    path = trained / "small.safetensors"
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1, dtype=torch.int64)}, path)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    told(read_weights, path)


@pytest.mark.parametrize(
    "header",
    [
        b"{}",
        b"[" * 5000,
        b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}',
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
        b'{"a":{"dtype":"O","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":3}',
        b'{"__metadata__":{"a":1}}',
    ],
)
@pytest.mark.parametrize("length", [None, 0, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_any_form(header, length, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes((len(header) if length is None else length).to_bytes(8, "little") + header + b"\0" * 4)
    told(read_weights, path)


@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.complex64])
def test_tensors_that_are_no_weights(kind, run, tiny, tmp_path):
    fold = copied(run / "fold0", tmp_path / "fold0")
    tensors = read_weights(run / "fold0" / "model.safetensors")
    tensors["head.linear.bias"] = tensors["head.linear.bias"].to(kind)
    save_file(tensors, fold / "model.safetensors")
    with pytest.raises(Fb3Error, match=r"model\.safetensors: \['head.linear.bias'\] hold torch"):
        load_fold(tiny, run / "encoder", fold)


def test_weights_of_nan_cost_their_fold_only(bundle, competition, tmp_path, capsys):
    tensors = read_weights(bundle / FOLD / "model.safetensors")
    save_file({name: torch.full_like(t, torch.nan) for name, t in tensors.items()}, tmp_path / "nan.safetensors")
    odd = changed(bundle, tmp_path / "bundle", f"{FOLD}/model.safetensors", (tmp_path / "nan.safetensors").read_bytes())
    assert np.isfinite(infer(odd, competition, tmp_path / "s.csv").iloc[:, 1:]).all(axis=None)
    assert "predicts NaN even in fp32" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
@fuzz
@given(data=st.data())
def test_an_encoder_folder_of_any_form(file, data, trained, run):
    path, tree = trained / "encoder" / file, read_json(run / "encoder" / file)
    if file == "tokenizer.json":
        tree["model"] = {**tree["model"], "vocab": dict(list(tree["model"]["vocab"].items())[:20]), "merges": []}
    path.write_bytes(data.draw(swapped(tree).map(dumped)))
    read = (lambda path: random_encoder(path.parent)) if file == "config.json" else (lambda p: load_tokenizer(p.parent))
    told(read, path, "config.json")
    shutil.copyfile(run / "encoder" / file, path)


@pytest.mark.parametrize("name", ["evil.py", "pytorch_model.bin", "sub/optimizer.PT", "a.pkl"])
def test_what_may_run_code_is_not_packed(name, run, tmp_path):
    copy = copied(run, tmp_path / "run")
    (copy / "encoder" / name).parent.mkdir(exist_ok=True)
    (copy / "encoder" / name).write_text("")
    with pytest.raises(Fb3Error, match=f"{name}: may run code"):
        write_bundle([copy], tmp_path / "out")


@pytest.mark.parametrize("name", ["scores.json", "encoder/special.txt"])
def test_a_link_to_another_file_is_not_packed(name, run, tmp_path):
    copy = copied(run, tmp_path / "run")
    (tmp_path / "id_rsa").write_text("private")
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to(tmp_path / "id_rsa")
    with pytest.raises(Fb3Error, match=f"{name}: a link out of the run folder"):
        write_bundle([copy], tmp_path / "out")


@fuzz
@given(data=st.data())
def test_a_save_of_any_form(data, trained):
    """Sealed by its own hash, so that only its form can tell."""
    folder = trained / "resume" / "7"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"shared/weights/a": torch.ones(2)}, folder / "state.safetensors")
    shared = {"weights": {"a": {"$tensor": "shared/weights/a"}}, "score": {"$float": "nan"}}
    state = {"shared": shared, "keeper": {"score": None}, "own": [{}], "log": 3}
    content = {"made_of": {"recipe": {}}, "state": state, "tensors": sha256(folder / "state.safetensors")}
    odd = data.draw(swapped(content))
    text = json.dumps(odd)
    sealed = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": odd}
    (folder / "state.json").write_text(save_folder.hashed_json(content))
    save_folder.read_save(folder)
    (folder / "state.json").write_text(json.dumps(sealed))
    told(
        lambda path: save_folder.read_save(path.parent),
        folder / "state.json",
        "state.safetensors",
        "model.safetensors",
        "fold.json",
    )


def test_odd_names_are_no_saves(tmp_path):
    for name in ("7", "12", "²", "x", "-3"):
        (tmp_path / name).mkdir()
    assert [path.name for path in save_folder.list_saves(tmp_path)] == ["12", "7"]
