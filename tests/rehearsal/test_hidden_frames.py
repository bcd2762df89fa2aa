"""Pictures of hidden rows: taken from the files of the public ones."""

import pandas as pd

from fb3.data.frames.frame_references import FrameReference
from fb3.data.frames.picture_files import open_picture_files
from fb3.recipe.data import DataSettings
from fb3.recipe.frames import FRAMES_COLUMN
from fb3.rehearsal.hidden_frames import write_hidden_frames
from tests.picture_data import write_npz


def test_pictures_of_a_packed_npz_are_read_once_and_in_its_order(tmp_path, monkeypatch):
    path = write_npz(tmp_path / "frames.npz", [2, 1, 3])
    (file,) = open_picture_files([path])
    read, content = [], type(file).content
    monkeypatch.setattr(type(file), "content", lambda self, place: read.append(place) or content(self, place))
    frames = {"files": ["frames.npz"], "encoder": "any", "most": 2}
    settings = DataSettings.model_validate(
        {"id_column": "id", "text_column": "title", "target_columns": ["c"], "frames": frames}
    )
    drawn = ["n0", "n1", "n2", "n2", "n0", "n1"]
    references = [FrameReference(path, each, len(file.items[each])) for each in drawn]
    test = pd.DataFrame({"id": [f"h{n}" for n in range(6)], "title": "words", FRAMES_COLUMN: references})
    (tmp_path / "out").mkdir()
    write_hidden_frames(test, settings, tmp_path / "out")
    assert read == [*range(6)]
    (written,) = open_picture_files([tmp_path / "out" / "frames.npz"])
    assert [len(written.items.get(f"h{n}", [])) for n in range(6)] == [0, 4, 3, 3, 2, 1]
    assert content(written, written.items["h3"][2]) == content(file, file.items["n2"][2])
