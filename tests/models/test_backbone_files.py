"""Files that are not what their names say: known by their first bytes, before torch is imported."""

import contextlib
import gzip
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModel

from fb3.data.tokenizer import read_tokenizer
from fb3.errors import Fb3Error
from fb3.models.backbone import export_encoder
from fb3.models.backbone_files import check_backbone, find_backbone
from fb3.recipe import load_recipe
from fb3.runs.checkpoint import read_weights
from fb3.system.file_contents import placeholder_problem, weights_problem
from tests.conftest import copied

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 371146213\n" % (b"4d" * 32)
PAGE = b'\n<!DOCTYPE html>\n<html class=""><head><title>404</title></head></html>'


def refused(folder):
    with pytest.raises(Fb3Error) as caught:
        check_backbone(str(folder))
    assert str(caught.value).startswith(f"model.backbone={folder}: ")
    return str(caught.value).removeprefix(f"model.backbone={folder}: ")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            POINTER,
            "is a Git LFS pointer, not the file of 371.1 MB that it stands for; run `git lfs pull` in its repository",
        ),
        (PAGE, "is a web page, not the file behind it; copy or download it again"),
        (
            b"\xef\xbb\xbf<?xml version='1.0'?><Error/>",
            "is a web page, not the file behind it; copy or download it again",
        ),
        (b"", "is empty; copy or download it again"),
    ],
)
def test_what_stands_in_the_place_of_a_file(name, content, words, tiny_bert, tmp_path):
    folder = copied(tiny_bert, tmp_path / "bert")
    (folder / name).write_bytes(content)
    assert refused(folder) == f"{name} {words}"


def test_a_pointer_in_the_place_of_a_sentencepiece_model(tiny_bert, tmp_path):
    folder = copied(tiny_bert, tmp_path / "bert")
    (folder / "tokenizer.json").unlink()
    (folder / "spm.model").write_bytes(POINTER)
    assert refused(folder).startswith("spm.model is a Git LFS pointer")


@pytest.mark.parametrize("package", ["sentencepiece", "google.protobuf"])
def test_a_sentencepiece_model_without_the_package(package, tiny_bert, tmp_path, monkeypatch):
    folder = copied(tiny_bert, tmp_path / "bert")
    (folder / "spm.model").write_bytes(b"\n\x0e\n\x05[PAD]\x15\0\0\0\0\x18\x03")
    monkeypatch.setitem(sys.modules, package, None)
    check_backbone(str(folder))  # tokenizer.json is there
    (folder / "tokenizer.json").unlink()
    name = {"google.protobuf": "protobuf"}.get(package, package)
    assert refused(folder).startswith(
        f"spm.model is read with the package {name}, which is not installed; pip install {name}, or save tokenizer.json"
    )
    monkeypatch.undo()
    check_backbone(str(folder))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"Entry not found", "is a text ('Entry not found'), not safetensors"),
        (b'{"error":"Repository not found"}', 'is a text (\'{"error":"Repository not found"}\'), not safetensors'),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 99, "is an HDF5 file, not safetensors"),
        (gzip.compress(b"x", mtime=0), "is a gzip archive, not safetensors"),
        (b"\xff" * 200, "is of another kind, not safetensors"),
        (b"\0", "is of another kind, not safetensors"),
    ],
)
def test_a_file_of_another_kind_as_weights(content, words, tiny_bert, tmp_path):
    folder = copied(tiny_bert, tmp_path / "bert")
    (folder / "model.safetensors").write_bytes(content)
    assert refused(folder) == f"model.safetensors {words}; copy or download it again"


def test_weights_that_are_cut_off_or_too_long(tiny_bert, tmp_path):
    folder = copied(tiny_bert, tmp_path / "bert")
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in (9, len(whole) - 1):
        path.write_bytes(whole[:size])
        words = "within its header" if size == 9 else f"has {len(whole) - 1:,} bytes where its header asks for"
        assert words in refused(folder)
    path.write_bytes(whole + b"\0")
    assert refused(folder).startswith(f"model.safetensors has {len(whole) + 1:,} bytes where")
    with pytest.raises(
        Fb3Error,
        match=r"model\.safetensors: cannot be read \(it has [\d,]+ bytes where its header asks for [\d,]+; copy",
    ):
        read_weights(path)
    path.write_bytes(POINTER)
    with pytest.raises(Fb3Error, match=r"model\.safetensors: cannot be read \(it is a Git LFS pointer.*git lfs pull"):
        read_weights(path)


@pytest.mark.parametrize("length", range(1, 300, 3))
def test_whole_weights_pass_whatever_byte_they_begin_with(length, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(3), "b": torch.ones(0)}, path, metadata={"x": "y" * length})
    assert weights_problem(path) == ""
    save_file({}, path)
    assert weights_problem(path) == ""


def test_names_that_are_changed_are_told_apart(tiny_bert, tmp_path):
    folder = copied(tiny_bert, tmp_path / "bert")
    tensors, pickled = folder / "model.safetensors", folder / "pytorch_model.bin"
    state = {name: tensor.clone() for name, tensor in read_weights(tensors).items()}
    tensors.rename(pickled)
    assert refused(folder) == ("pytorch_model.bin is a safetensors file, not PyTorch's; rename it to model.safetensors")
    torch.save(state, pickled)
    check_backbone(str(folder))
    whole = pickled.read_bytes()
    pickled.write_bytes(whole[: len(whole) // 2])
    assert refused(folder).startswith("pytorch_model.bin is cut off")
    torch.save(state, pickled, _use_new_zipfile_serialization=False)
    check_backbone(str(folder))
    pickled.rename(tensors)
    assert refused(folder) == ("model.safetensors is a PyTorch file, not safetensors; rename it to pytorch_model.bin")


def test_shards_that_are_missing_or_something_else(tiny_bert, tmp_path):
    folder = copied(tiny_bert, tmp_path / "bert")
    AutoModel.from_pretrained(tiny_bert).save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink()
    check_backbone(str(folder))
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    shards[1].rename(folder / "away")
    assert refused(folder).startswith(
        f"model.safetensors.index.json names {len(shards)} files of weights, and ['{shards[1].name}'] are missing"
    )
    shards[1].write_bytes(POINTER)
    assert refused(folder).startswith(f"{shards[1].name} is a Git LFS pointer")
    (folder / "model.safetensors.index.json").write_bytes(POINTER)
    assert refused(folder).startswith("model.safetensors.index.json is a Git LFS pointer")


def test_a_tokenizer_of_a_newer_version(tiny_bert, tmp_path):
    path = copied(tiny_bert, tmp_path / "bert") / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["model"]["type"] = "WordPieceOfTomorrow"
    path.write_text(json.dumps(tree))
    with pytest.raises(Fb3Error, match=r"tokenizer\.json: cannot be read .* saved by a newer version of tokenizers"):
        read_tokenizer(path)
    path.write_bytes(POINTER)
    with pytest.raises(Fb3Error, match=r"tokenizer\.json: cannot be read \(it is a Git LFS pointer.*git lfs pull"):
        read_tokenizer(path)


@pytest.mark.parametrize(
    "name", ["/nowhere/x", "./x", "~/nothing", "~nobody-here/x", "a/b/c", r"C:\models\x", "my model"]
)
def test_a_path_is_no_hub_id(name, no_sockets):
    with pytest.raises(Fb3Error, match="no such folder"):
        find_backbone(name)


def test_a_file_in_the_place_of_a_folder(tiny_bert):
    with pytest.raises(Fb3Error, match=r"a file; give the folder with config\.json, tokenizer and weights"):
        check_backbone(str(tiny_bert / "model.safetensors"))


def test_the_look_at_files_imports_no_torch(tiny_bert):
    program = (
        "import sys\nfrom fb3.models.backbone_files import find_backbone\nfind_backbone(sys.argv[1])\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program, str(tiny_bert)], check=True)


def test_other_files_stand_for_themselves(tiny_bert, tmp_path):
    for path in tiny_bert.iterdir():
        assert placeholder_problem(path) == ""
    odd = tmp_path / "vocab.txt"
    odd.write_text("<s>\n[PAD]\nversion\n")
    assert placeholder_problem(odd) == ""


class Hub(BaseHTTPRequestHandler):
    """A hub, as far as `from_pretrained` asks for it."""

    folder = None

    def do_GET(self):
        path = self.folder / self.path.rsplit("/", 1)[1]
        found = self.path.startswith("/someone/bert/resolve/") and path.is_file()
        content = path.read_bytes() if found else b'{"error":"Repository not found"}'
        self.send_response(200 if found else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{path.name}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        if not found:
            named = self.path.startswith(("/someone/bert/", "/api/models/someone/bert"))
            self.send_header("X-Error-Code", "EntryNotFound" if named else "RepoNotFound")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


@contextlib.contextmanager
def served(folder):
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Hub,), {"folder": folder})) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


PROGRAM = """
import sys, time
from pathlib import Path
from fb3.errors import Fb3Error
from fb3.models.backbone import export_encoder, pretrained_encoder
from fb3.recipe import load_recipe
for name in map(str.strip, sys.stdin):
    recipe, start = load_recipe("tiny", [f"model.backbone={name}", "data.max_length=64"]), time.monotonic()
    try:
        export_encoder(recipe.model, Path(sys.argv[1]))
        said = type(pretrained_encoder(recipe.model, Path(sys.argv[1]))).__name__
    except Fb3Error as error:
        said = str(error)
    print(f"{time.monotonic() - start:.1f}", said, flush=True)
"""


def test_the_hub_is_asked_where_it_can_be_reached_and_else_nobody_waits(tiny_bert, tmp_path):
    outside = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    outside.pop("HF_HUB_OFFLINE", None)
    none_here = "model.backbone=models/none: no folder of this name here, and the hub "
    with contextlib.ExitStack() as stack:
        with served(tiny_bert) as port:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(tmp_path / "encoder")],
                env={**outside, "HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": str(tmp_path / "home")},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.kill)

            def load(name):
                process.stdin.write(f"{name}\n")
                process.stdin.flush()
                seconds, said = process.stdout.readline().split(" ", 1)
                return float(seconds), said.strip()

            assert load("someone/bert")[1] == "BertModel"
            assert load("models/none")[1].startswith(f"{none_here}refused: models/none is not a local folder")
        seconds, said = load("someone/bert")
        assert said == "BertModel", "out of the cache"
        longer, said = load("models/none")
        assert said.startswith(f"{none_here}cannot be reached (127.0.0.1: Connection refused), nor is a copy of it")
        assert max(seconds, longer) < 10, "transformers alone tries for half a minute"


def test_offline_nothing_is_asked(monkeypatch, tmp_path, no_sockets):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    recipe = load_recipe("tiny", ["model.backbone=models/none"])
    with pytest.raises(Fb3Error, match=r"no folder .* the hub is not asked \(HF_HUB_OFFLINE is set\), nor is a copy"):
        export_encoder(recipe.model, tmp_path / "encoder")


@pytest.mark.parametrize(("proxy", "reached"), [("http://127.0.0.1:{port}", True), ("127.0.0.1:1", False)])
def test_a_proxy_is_what_must_be_reached(proxy, reached, tiny_bert, monkeypatch):
    with served(tiny_bert) as port:
        monkeypatch.setenv("https_proxy", proxy.format(port=port))
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        assert bool(find_backbone("models/none").offline) != reached
