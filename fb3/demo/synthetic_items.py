"""Synthetic items with a title and frames, whose class neither tells alone: the title names a theme, frames a shape."""

from pathlib import Path

import numpy as np
import pandas as pd

from fb3.data.frames.frame_files import write_frames
from fb3.system.files import write_csv

THEMES = {
    "kitchen": ("pan", "oven", "spoon", "recipe", "soup", "plate"),
    "garden": ("rose", "soil", "rake", "tree", "bee", "lawn"),
    "harbour": ("boat", "anchor", "net", "gull", "tide", "rope"),
}
_FILLERS = ("my", "the old", "a new", "her", "this", "our")
_ENDS = ("today", "in the morning", "again", "with a friend", "at last")
_SIDE = 12  # pixels of a frame's side
_FRAMES = "frames.npz"
ITEMS_RECIPE = [
    "data.id_column=id",
    "data.text_column=title",
    "data.target_columns=[category]",
    "data.max_length=32",
    f"data.frames={{files: [{_FRAMES}], most: 4}}",
    "task={kind: classification}",
    "metric=macro_f1",
]


def _circle(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.75) < 0.25


def _square(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.maximum(np.abs(x), np.abs(y)) - 0.75) < 0.25


def _cross(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (np.minimum(np.abs(x), np.abs(y)) < 0.25) & (np.maximum(np.abs(x), np.abs(y)) < 1.0)


SHAPES = {"circle": _circle, "square": _square, "cross": _cross}


def draw_frame(shape: str, rng: np.random.Generator) -> np.ndarray:
    """The pixels of a noisy picture of a shape, (144,): they stand where an image encoder's vector would."""
    radius, (left, top) = rng.uniform(3.5, 5.0), rng.uniform(-1.0, 1.0, 2)
    pixels = np.arange(_SIDE) - (_SIDE - 1) / 2
    x, y = np.meshgrid((pixels - left) / radius, (pixels - top) / radius)
    return (SHAPES[shape](x, y) * rng.uniform(0.6, 1.0) + rng.normal(0.0, 0.15, x.shape)).ravel()


def write_items(out: Path, train: int, test: int, seed: int) -> Path:
    """Writes train.csv, test.csv, sample_submission.csv and frames.npz to `out`, and the test items' classes beside it.

    Each tenth item has no frames. Returns the path of truth.csv in the parent folder of `out`.
    """
    out.mkdir(parents=True, exist_ok=True)
    rng, rows, frames = np.random.default_rng(seed), [], []
    for number in range(train + test):
        theme, shape = (str(rng.choice(list(names))) for names in (THEMES, SHAPES))
        word, other = rng.choice(THEMES[theme], 2, replace=False)
        title = f"{rng.choice(_FILLERS)} {word} and {rng.choice(_FILLERS)} {other} {rng.choice(_ENDS)}"
        rows.append([f"{rng.integers(16**8):08x}{number:04x}", title, f"{theme}, {shape}"])
        count = 0 if number % 10 == 9 else rng.integers(1, 7)
        frames.append(np.array([draw_frame(shape, rng) for _ in range(count)]).reshape(count, _SIDE**2))
    table = pd.DataFrame(rows, columns=["id", "title", "category"])
    seen, hidden = table[:train], table[train:]
    write_frames(out / _FRAMES, table["id"].tolist(), frames)
    write_csv(seen, out / "train.csv")
    write_csv(hidden[["id", "title"]], out / "test.csv")
    write_csv(hidden[["id"]].assign(category=seen["category"].iloc[0]), out / "sample_submission.csv")
    write_csv(hidden[["id", "category"]], truth := out.parent / "truth.csv")
    return truth
