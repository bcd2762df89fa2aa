import pytest

from fb3.errors import Fb3Error
from fb3.files import read_json, replacing, sha256, write_json, write_text


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    write_text("old", path)

    def fail():
        with replacing(path) as aside:
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
