"""Items whose label neither the text nor the frames tell alone: the text says its first half, the frames its second."""

from pathlib import Path

import numpy as np
import pandas as pd

WORDS = (("apple", "pear", "plum", "grape"), ("stone", "iron", "brick", "glass"))
LABELS = (("fruit", "matter"), ("dark", "light"))
WIDTH = 12


def write_items(folder: Path, count: int = 64, seed: int = 0, most: int = 5) -> Path:
    """train.csv, test.csv, sample_submission.csv and frames.npz; each eighth item has no frames."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    ids, counts, frames = [], [], []
    for split in ("train", "test"):
        words, sides = rng.integers(0, 2, count), rng.integers(0, 2, count)
        table = pd.DataFrame({"id": [f"{split}{n}" for n in range(count)]})
        table["title"] = [f"a {rng.choice(WORDS[w])} on the {rng.choice(['table', 'floor', 'shelf'])}" for w in words]
        table["label"] = [f"{LABELS[0][w]}, {LABELS[1][s]}" for w, s in zip(words, sides, strict=True)]
        for row in range(count):
            ids.append(f"{split}{row}")
            counts.append(0 if row % 8 == 7 else int(rng.integers(1, most + 1)))
            frames.append(rng.normal(2 * sides[row] - 1, 0.5, (counts[-1], WIDTH)))
        (table if split == "train" else table.drop(columns="label")).to_csv(folder / f"{split}.csv", index=False)
    pd.DataFrame({"id": [f"test{n}" for n in range(count)], "label": "fruit, dark"}).to_csv(
        folder / "sample_submission.csv", index=False
    )
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    stored = np.concatenate(frames).astype(np.float16)
    np.savez(folder / "frames.npz", ids=np.array(ids), offsets=offsets, features=stored)
    return folder


RECIPE = [
    "data.id_column=id",
    "data.text_column=title",
    "data.target_columns=[label]",
    "data.frames={files: [frames.npz], most: 4}",
    "task={kind: classification}",
    "metric=macro_f1",
    "folds.count=2",
    "train.precision=fp32",
    "predict.precision=fp32",
]
