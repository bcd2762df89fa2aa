"""Essays: read and checked, tokenised once and ragged, batched by length, padded to the longest of a batch only."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fb3.errors import Fb3Error
from fb3.recipe.groups import DataGroup, TaskGroup

if TYPE_CHECKING:
    import torch
    from tokenizers import Tokenizer

Batch = dict[str, "torch.Tensor"]
BUCKET_BATCHES = 16  # batches that are sorted by length together; 16 keep padding near 2 % and the order still random
FOLD_COLUMN = "fold"


# --- reading ---


def read_table(path: str | Path, wanted: Iterable[str]) -> pd.DataFrame:
    """Reads a CSV with every cell as text, exactly as it stands: an essay that says "NA" stays an essay.

    Raises:
        Fb3Error: no such file, not UTF-8 (names the byte), not a CSV (names the row), a column
            missing or there twice.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise Fb3Error(f"{path}: not UTF-8 at byte {error.start} ({error.reason}); save it as UTF-8") from None
    except FileNotFoundError:
        beside = sorted(p.name for p in path.parent.glob("*.csv")) if path.parent.is_dir() else []
        raise Fb3Error(f"{path}: no such file; CSV files in {path.parent}: {beside or 'none'}") from None
    except OSError as error:
        raise Fb3Error(f"{path}: cannot be read ({error.strerror})") from None
    table = _parse(text, path)
    missing = [column for column in wanted if column not in table.columns]
    if missing:
        raise Fb3Error(f"{path}: no column {missing}; it has {list(table.columns)}, wanted {list(wanted)}")
    return table


def _parse(text: str, path: Path) -> pd.DataFrame:
    """The csv module rather than pandas, which fills short rows and cuts long ones without a word."""
    csv.field_size_limit(2**31 - 1)
    try:
        header, *rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise Fb3Error(f"{path}: not a CSV table ({error}); download it again") from None
    except ValueError:
        raise Fb3Error(f"{path}: not a CSV table (the file is empty); download it again") from None
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise Fb3Error(f"{path}: column {twice} stands there more than once")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise Fb3Error(f"{path}: row {number} has {len(row)} cells, the header {len(header)}; is a quote missing?")
    return pd.DataFrame(rows, columns=header, dtype=object)


def read_essays(path: str | Path, data: DataGroup, task: TaskGroup | None = None) -> pd.DataFrame:
    """Reads essays, with their scores where a task is given, and a `fold` column where the file has one.

    Args:
        path: train.csv or test.csv.
        data: names the columns.
        task: gives the range of the scores; none: no scores are read.

    Returns:
        Id and text as str, scores as float32, `fold` as int; other columns are left out.

    Raises:
        Fb3Error: what `read_table` refuses; empty or duplicate ids; scores that are no number or out of range.
    """
    path = Path(path)
    targets = list(data.target_columns) if task else []
    table = read_table(path, [data.id_column, data.text_column, *targets])
    check_ids(table[data.id_column], path)
    essays = table[[data.id_column, data.text_column]].copy()
    for column in targets:
        essays[column] = _numbers(table, column, data, path).astype(np.float32)
    if task:
        _check_range(essays, data, task, path)
        if FOLD_COLUMN in table.columns:
            essays[FOLD_COLUMN] = _fold_numbers(table, data, path)
    return essays


def check_ids(ids: pd.Series, path: Path) -> None:
    """Refuses a file without rows, empty ids and duplicate ids."""
    if ids.empty:
        raise Fb3Error(f"{path}: no row below the header")
    empty = np.flatnonzero(ids.str.strip() == "")
    if len(empty):
        raise Fb3Error(f"{path}: {len(empty)} empty ids in column {ids.name}, first rows {_rows(empty)}")
    twice = ids[ids.duplicated()]
    if len(twice):
        raise Fb3Error(f"{path}: {len(twice)} duplicate ids in column {ids.name}: {twice.unique()[:5].tolist()}")


def _rows(positions: np.ndarray) -> list[int]:
    """Row numbers as a reader counts them: 1 is the first row below the header."""
    return [int(position) + 1 for position in positions[:5]]


def _numbers(table: pd.DataFrame, column: str, data: DataGroup, path: Path) -> pd.Series:
    numbers = pd.to_numeric(table[column], errors="coerce")
    bad = np.flatnonzero(~np.isfinite(numbers.to_numpy(np.float64)))
    if len(bad):
        row = bad[0]
        raise Fb3Error(
            f"{path}: {len(bad)} cells of column {column} are no number, first {table[column].iloc[row]!r} "
            f"in row {row + 1} ({data.id_column} {table[data.id_column].iloc[row]})"
        )
    return numbers


def _check_range(essays: pd.DataFrame, data: DataGroup, task: TaskGroup, path: Path) -> None:
    scores = essays[list(data.target_columns)].to_numpy()
    bad = np.argwhere((scores < task.minimum) | (scores > task.maximum))
    if len(bad):
        row, column = bad[0]
        raise Fb3Error(
            f"{path}: {len(bad)} scores outside {task.minimum}-{task.maximum}, first {scores[row, column]} in row "
            f"{row + 1} ({data.id_column} {essays[data.id_column].iloc[row]}), column {data.target_columns[column]}; "
            "mend the file or set task.minimum and task.maximum"
        )


def _fold_numbers(table: pd.DataFrame, data: DataGroup, path: Path) -> pd.Series:
    folds = _numbers(table, FOLD_COLUMN, data, path)
    found = sorted(folds.unique())
    if len(found) < 2 or found != list(range(len(found))):
        raise Fb3Error(
            f"{path}: column {FOLD_COLUMN} must hold whole numbers from 0 up, without gaps, got {found[:10]}"
        )
    return folds.astype(int)


# --- tokens ---


@dataclass(frozen=True)
class Encoded:
    """Essays as tokens: ragged rows of ids, special tokens included; row i is essay i."""

    rows: Sequence[np.ndarray]
    pad: int
    lengths: np.ndarray  # (N,), tokens of each essay


def tokenise(texts: Sequence[str], tokenizer: "Tokenizer", pad: int, data: DataGroup) -> Encoded:
    """Tokenises every text once and truncates it.

    Args:
        texts: N texts; an empty one keeps its special tokens.
        tokenizer: the fast tokenizer of the encoder folder.
        pad: the id that fills a batch.
        data: max_length and truncation.
    """
    prefix, suffix = special_tokens(tokenizer)
    room = data.max_length - len(prefix) - len(suffix)
    if room < 1:
        raise Fb3Error(f"data.max_length={data.max_length}: no room beside {len(prefix) + len(suffix)} special tokens")
    rows = []
    for start in range(0, len(texts), 1024):  # bounds the memory of the tokenizer's own, much larger, encodings
        for encoding in tokenizer.encode_batch_fast(list(texts[start : start + 1024]), add_special_tokens=False):
            ids = [*prefix, *truncate(encoding.ids, room, data.truncation), *suffix]
            rows.append(np.array(ids or [pad], np.int32))  # an encoder needs one token at least
    return Encoded(rows, pad, np.fromiter(map(len, rows), np.int64, len(rows)))


def special_tokens(tokenizer: "Tokenizer") -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and after a text."""
    marked = tokenizer.encode("a")
    special = marked.special_tokens_mask
    inner = [position for position, flag in enumerate(special) if not flag]
    first, last = (inner[0], inner[-1] + 1) if inner else (len(special), len(special))
    return marked.ids[:first], marked.ids[last:]


def truncate(ids: list[int], room: int, how: str) -> list[int]:
    """Keeps `room` tokens: the first, the last, or half of each end (the head takes the odd one)."""
    if len(ids) <= room:
        return ids
    if how == "head":
        return ids[:room]
    if how == "tail":
        return ids[-room:]
    tail = room // 2
    return ids[: room - tail] + (ids[-tail:] if tail else [])


# --- batches ---


def training_batches(lengths: np.ndarray, rows: np.ndarray, size: int, seed: int, epoch: int) -> list[np.ndarray]:
    """Batches of `size` rows of similar length, in an order that is new for each epoch and fixed by the seed.

    Args:
        lengths: tokens of every essay, (N,).
        rows: the training rows.
        size: essays a batch; the last may be smaller.
        seed: with `epoch` decides the order.
        epoch: counted from 0.
    """
    rng = np.random.default_rng([seed, epoch])
    shuffled = rng.permutation(rows)
    batches = []
    for start in range(0, len(shuffled), size * BUCKET_BATCHES):
        bucket = shuffled[start : start + size * BUCKET_BATCHES]
        bucket = bucket[np.argsort(lengths[bucket], kind="stable")]
        batches += [bucket[i : i + size] for i in range(0, len(bucket), size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def steps_per_epoch(essays: int, size: int, accumulation: int) -> int:
    """Optimizer steps of one epoch of `training_batches`."""
    return math.ceil(math.ceil(essays / size) / accumulation)


def inference_batches(lengths: np.ndarray, rows: np.ndarray, token_budget: int) -> list[np.ndarray]:
    """Batches of at most `token_budget` tokens, padding included, longest first (so memory fails in the first).

    An essay longer than the budget gets a batch of its own.
    """
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    batches, start = [], 0
    while start < len(ordered):
        size = max(1, token_budget // max(1, int(lengths[ordered[start]])))
        batches.append(ordered[start : start + size])
        start += size
    return batches


def collate(encoded: Encoded, rows: np.ndarray, targets: np.ndarray | None = None) -> Batch:
    """One batch: input_ids and attention_mask (B, T), row (B,), and targets (B, K) where given, T the longest row's."""
    import torch

    drawn = [encoded.rows[row] for row in rows]  # once: augmented rows change each time
    longest = max(map(len, drawn))
    ids = np.full((len(rows), longest), encoded.pad, np.int64)  # (B, T)
    mask = np.zeros((len(rows), longest), np.int64)  # (B, T)
    for position, tokens in enumerate(drawn):
        ids[position, : len(tokens)] = tokens
        mask[position, : len(tokens)] = 1
    batch = {"input_ids": ids, "attention_mask": mask, "row": np.asarray(rows, np.int64)}
    if targets is not None:
        batch["targets"] = targets[rows]
    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()}
