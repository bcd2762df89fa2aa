import re
import subprocess
import sys

import pandas as pd


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
