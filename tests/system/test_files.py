import os
import socket
import stat
from pathlib import Path
from threading import Thread

import pandas as pd
import pytest

from fb3.cli import app
from fb3.errors import Fb3Error
from fb3.system.files import (
    atomic_file,
    atomic_folder,
    check_output_path,
    read_json,
    sha256,
    write_csv,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    write_text("old", path)

    def fail():
        with atomic_file(path) as aside:
            aside.write_text("half of the n")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_json_and_hash(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_json({"é": 1}, path)
    assert read_json(path) == {"é": 1}
    assert sha256(path) == __import__("hashlib").sha256(path.read_bytes()).hexdigest()


def test_bad_files_are_named(tmp_path):
    with pytest.raises(Fb3Error, match=r"none\.json: cannot be read"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(Fb3Error, match=r"bad\.json: not JSON"):
        read_json(tmp_path / "bad.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(Fb3Error, match="cannot be written"):
        write_text("x", tmp_path / "file" / "below")


def long_links(folder):
    """Names of links, each with the file to which it leads in the end."""
    (folder / "deep").mkdir()
    places = {
        "absolute": folder / "real.csv",
        "relative": folder / "deep" / "other.csv",
        "twice": folder / "deep" / "other.csv",
        "dangling": folder / "deep" / "new.csv",
        "far": folder / "not" / "yet" / "there.csv",
    }
    (folder / "absolute").symlink_to(folder / "real.csv")
    (folder / "relative").symlink_to("deep/other.csv")
    (folder / "deep" / "second").symlink_to("other.csv")
    (folder / "twice").symlink_to("deep/second")
    (folder / "dangling").symlink_to("deep/new.csv")
    (folder / "far").symlink_to("not/yet/there.csv")
    for name in ("real.csv", "deep/other.csv"):
        (folder / name).write_text("old")
    return places


def test_a_link_stays_and_its_target_is_written(tmp_path):
    for name, target in long_links(tmp_path).items():
        link, before = tmp_path / name, (tmp_path / name).readlink()
        write_text(name, link)
        assert link.readlink() == before
        assert target.read_text() == name
        assert not target.is_symlink()
        assert not list(tmp_path.rglob("*.part"))


def test_a_link_that_leads_nowhere_is_named_and_stays(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "blocked").symlink_to(tmp_path / "file" / "below")
    (tmp_path / "round").symlink_to("round")
    for name in ("blocked", "round"):
        with pytest.raises(Fb3Error, match=f"{name}: cannot be written"):
            write_text("new", tmp_path / name)
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / "file").read_text() == ""
    assert not list(tmp_path.rglob("*.part"))


def test_a_folder_behind_a_link_is_made_there(tmp_path):
    (tmp_path / "link").symlink_to("deep/run")
    with atomic_folder(tmp_path / "link") as aside:
        write_text("a", aside / "file")
    assert (tmp_path / "link").readlink() == Path("deep/run")
    assert (tmp_path / "deep" / "run" / "file").read_text() == "a"


def read_all(fifo, into):
    into.append(fifo.read_bytes())


def test_a_pipe_gets_the_bytes_and_stays_a_pipe(tmp_path):
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = Thread(target=read_all, args=(pipe, got), daemon=True)
    reader.start()
    write_text("line\n" * 50_000, pipe)
    reader.join(10)
    assert got == [b"line\n" * 50_000]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]


def test_a_device_gets_the_bytes_and_stays_a_device(tmp_path):
    master, slave = os.openpty()
    device = Path(os.ttyname(slave))
    link = tmp_path / "link"
    link.symlink_to(device)
    for path in (device, link):
        write_text("to a terminal\n", path)
        assert os.read(master, 100) == b"to a terminal\r\n"
    assert stat.S_ISCHR(device.stat().st_mode)
    assert link.is_symlink()
    with pytest.raises(Fb3Error, match="not a plain file, and it is written more than once; give a file"):
        check_output_path(device, plain=True)
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize("name", ["", "folder", "folder/", "new/", "link"])
def test_a_folder_is_no_file(tmp_path, name):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    with pytest.raises(Fb3Error, match="is a folder; give a file"):
        write_text("x", f"{tmp_path}/{name}")
    assert {p.name for p in tmp_path.iterdir()} == {"folder", "link"}


@pytest.mark.parametrize("ending", ["gz", "GZ", "zip", "bz2", "xz", "zst"])
def test_a_name_that_promises_a_compressed_file_is_refused(tmp_path, ending):
    with pytest.raises(Fb3Error, match=rf"s\.csv\.{ending}: no compressed file is written; give \S+s\.csv and"):
        write_csv(pd.DataFrame({"a": [1]}), tmp_path / f"s.csv.{ending}")
    assert not list(tmp_path.iterdir())


def test_a_file_keeps_its_permissions_and_other_links_their_content(tmp_path):
    for mode in (0o600, 0o664, 0o444):
        path, other = tmp_path / f"{mode:o}", tmp_path / f"{mode:o}-other"
        path.write_text("old")
        path.chmod(mode)
        os.link(path, other)
        write_text("new", path)
        assert (path.read_text(), other.read_text()) == ("new", "old")
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_socket_is_refused(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)  # its name may have a hundred letters
        server.bind("s")
        with pytest.raises(Fb3Error, match="s: not a plain file; give a file"):
            write_text("x", "s")


@pytest.mark.parametrize("command", ["infer", "image-freeze"])
def test_the_commands_refuse_what_is_no_file(command, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    places = {"new/": "is a folder", "list.gz": "no compressed file"}
    if command == "infer":
        places["pipe"] = "not a plain file, and it is written more than once"
    for name, words in places.items():
        arguments = [command, *(["bundle"] if command == "infer" else []), "--out", f"{tmp_path}/{name}"]
        with pytest.raises(Fb3Error, match=words):
            app(arguments, standalone_mode=False)
    assert [p.name for p in tmp_path.iterdir()] == ["pipe"]
