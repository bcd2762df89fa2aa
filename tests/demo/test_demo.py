import re
import subprocess
import sys

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from fb3.system.files import read_json


def test_the_demo_beats_the_column_means_clearly(tmp_path):
    out = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "fb3", "demo", "--out", str(out)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "next: fb3 train" in done.stderr
    lower = int(re.search(r"lower by\D+(\d+)%", done.stdout)[1])
    assert lower >= 15
    submission = pd.read_csv(out / "working" / "submission.csv")
    sample = pd.read_csv(out / "data" / "sample_submission.csv")
    assert submission["text_id"].tolist() == sample["text_id"].tolist()
    assert not (out / "bundle" / "wheels").exists()
    again = subprocess.run([sys.executable, "-m", "fb3", "demo", "--out", str(out)], capture_output=True, text=True)
    assert again.returncode == 1
    assert "not empty" in again.stderr


def test_the_multimodal_demo_needs_both_the_titles_and_the_frames(tmp_path):
    out = tmp_path / "demo"
    command = [sys.executable, "-m", "fb3", "demo", "--multimodal", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    both, titles = (float(re.search(rf"{words}\D+([01]\.\d+)", done.stdout)[1]) for words in ("submission", "alone"))
    assert both > 0.75
    assert titles < 0.4
    assert read_json(out / "bundle" / "manifest.json")["runs"][0]["folds"] == [0, 1]
    table = pd.read_csv(out / "data" / "train.csv")
    with np.load(out / "data" / "frames.npz") as stored:
        ids, offsets, frames = (stored[name] for name in ("ids", "offsets", "features"))
    means = {key: frames[a:b].mean(0) for key, a, b in zip(ids, offsets[:-1], offsets[1:], strict=True) if b > a}
    seen = table[table["id"].isin(means)]
    x = np.stack([means[key] for key in seen["id"]]).astype(float)
    half = len(x) // 2
    model = LogisticRegression(max_iter=500).fit(x[:half], seen["category"][:half])
    assert model.score(x[half:], seen["category"][half:]) < 0.45
    shape = seen["category"].str.partition(", ")[2]
    assert LogisticRegression(max_iter=500).fit(x[:half], shape[:half]).score(x[half:], shape[half:]) > 0.8
