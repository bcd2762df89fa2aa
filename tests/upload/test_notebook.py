"""Pushing and submitting a notebook with the real kaggle client against a small server."""

import json
from importlib.util import find_spec

import pytest

from fb3.errors import Fb3Error
from fb3.rehearsal.notebooks import find_notebook
from fb3.system.files import read_json, write_json
from fb3.upload.bundle_names import competition_name, dataset_name
from fb3.upload.notebook import kernel_metadata, log_tail, push_notebook, submit_notebook
from tests.conftest import copied

pytestmark = pytest.mark.skipif(find_spec("kaggle") is None, reason="the upload extra is not installed")


def test_the_notebook_goes_without_internet_and_with_its_sources(state):
    state.versions["someone/fb3-tiny"] = [{}]
    version = push_notebook(
        find_notebook("inference"), "someone/fb3-infer", dataset="someone/fb3-tiny", competition="c"
    )
    assert version == 3
    body = next(body for method, body in state.calls if method == "SaveKernel")
    assert body["enableInternet"] is False
    assert body["machineShape"] == "NvidiaTeslaT4"
    assert body["datasetDataSources"] == ["someone/fb3-tiny"]
    assert body["competitionDataSources"] == ["c"]
    assert body["dockerImagePinningType"] == "original"
    assert "from fb3 import infer" in body["text"]


def test_a_data_set_that_kaggle_does_not_know_is_told(state):
    with pytest.raises(Fb3Error, match="there is nothing of that name"):
        push_notebook(find_notebook("inference"), "someone/fb3-infer", dataset="someone/unknown", competition="c")


def test_a_data_set_that_is_not_ready_is_waited_for_by_the_user(state):
    state.versions["someone/fb3-tiny"] = [{}]
    state.faults["processing"] = 1
    with pytest.raises(Fb3Error, match="is not ready"):
        push_notebook(find_notebook("inference"), "someone/fb3-infer", dataset="someone/fb3-tiny", competition="c")


def test_another_version_than_the_latest_is_refused(state):
    with pytest.raises(Fb3Error, match="version 2 is not its latest, 3"):
        submit_notebook("someone/fb3-infer", "c", version=2, poll_seconds=0.01)


def test_submission_waits_shows_the_log_and_submits(state, capsys):
    state.faults["kernel_busy"] = 2
    assert submit_notebook("someone/fb3-infer", "c", version=3, poll_seconds=0.01) == "Successfully submitted"
    said = capsys.readouterr().err
    assert "running" in said
    assert "last line" in said
    body = next(body for method, body in state.calls if method == "CreateCodeSubmission")
    assert body["kernelVersion"] == 3
    assert body["fileName"] == "submission.csv"


def test_a_failed_notebook_is_not_submitted(state):
    state.kernel_states = ["ERROR"]
    with pytest.raises(Fb3Error, match="ended with status error; nothing was submitted"):
        submit_notebook("someone/fb3-infer", "c", poll_seconds=0.01)
    assert "CreateCodeSubmission" not in [method for method, _ in state.calls]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("no-slash", "a/b-c-d-e", "original", None), "OWNER/SLUG no-slash"),
        (("a/slug-of-it", "x", "original", None), "--dataset x"),
        (("a/slug-of-it", "a/b", "newest", None), "--pinning newest"),
        (("a/slug-of-it", "a/b", "original", "Another title"), "give the slug slug-of-it"),
    ],
)
def test_bad_kernel_names(arguments, words):
    kernel, dataset, pinning, title = arguments
    with pytest.raises(Fb3Error, match=words):
        kernel_metadata("n.ipynb", kernel, dataset, "c", pinning, title)


def test_a_log_that_is_no_json_is_shown_as_it_is():
    assert log_tail("plain\ntext") == "plain\ntext"
    assert log_tail(json.dumps([{"data": "a\n"}, {"data": "b"}])) == "a\nb"


def test_the_competition_that_is_attached_is_submitted_to(state):
    assert submit_notebook("someone/fb3-infer", None, poll_seconds=0.01) == "Successfully submitted"
    body = next(body for method, body in state.calls if method == "CreateCodeSubmission")
    assert body["competitionName"] == "the-competition"
    state.attached = ["one", "two"]
    with pytest.raises(Fb3Error, match=r"has \['one', 'two'\] attached; say which with --competition NAME"):
        submit_notebook("someone/fb3-infer", None, poll_seconds=0.01)


def test_the_bundle_names_data_set_and_competition(bundle, tmp_path):
    packed = copied(bundle, tmp_path / "bundle")
    for name, change in (
        ("dataset-metadata.json", {"id": "me/fb3-mine"}),
        ("manifest.json", {"competition": "slug-2"}),
    ):
        write_json({**read_json(packed / name), **change}, packed / name)
    assert dataset_name(packed, None) == "me/fb3-mine"
    assert competition_name(packed, None) == competition_name(None, "slug-2") == "slug-2"
    assert competition_name(None, "aes2") == "learning-agency-lab-automated-essay-scoring-2"
    for names, words in [
        ((packed, "aes2"), "was made for slug-2, --competition says learning-agency"),
        ((bundle, None), "names no competition, because its recipes do not; give --competition NAME"),
        ((None, None), "--competition NAME is missing; or give --bundle DIR"),
    ]:
        with pytest.raises(Fb3Error, match=words):
            competition_name(*names)
    with pytest.raises(Fb3Error, match="--dataset OWNER/SLUG is missing; or give --bundle DIR"):
        dataset_name(None, None)
