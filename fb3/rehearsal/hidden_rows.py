"""Hidden rows for a rehearsal: test.csv and sample_submission.csv in the public files' form, with very odd essays."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.data.column_guess import guess_columns
from fb3.data.frames.frame_references import find_frames
from fb3.data.joins import Joined, joined_files, read_joined, read_split
from fb3.data.tables import FOLD_COLUMN, read_table, write_table
from fb3.errors import Fb3Error
from fb3.recipe import Recipe
from fb3.recipe.data import DataSettings, FilesSettings
from fb3.recipe.frames import FRAMES_COLUMN
from fb3.rehearsal.hidden_frames import write_hidden_frames
from fb3.system.compressed_files import stored_file
from fb3.system.files import write_text
from fb3.targets.build import target_of

_COPIES = 10  # essays that occur twice
ODD = {
    "empty": "",
    "blank": " \t\n",
    "longest": "",  # five times the longest essay
    "emoji": "😀 👩‍👩‍👧 🏳️‍🌈 " * 30,
    "right-to-left": "שלום עולם، مرحبا بالعالم " * 30,
    "control": "a\x00b\x07c\x1b[0m\u200b\ufeff\u2028 d",
    "quotes": 'He said "no, ""never""",\nand left;\r\nNA',
    "na": "NA",
}
_DIGITS = "0123456789"
_ALPHABETS = (_DIGITS, _DIGITS + "ABCDEF", _DIGITS + "abcdef")
_LETTERS = ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", "abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True)
class PublicFiles:
    """The competition's test.csv and sample_submission.csv, every cell as text."""

    test: pd.DataFrame
    sample: pd.DataFrame


def public_files(data: Path, files: FilesSettings = FilesSettings()) -> PublicFiles | None:
    """The public files of a folder; None where one is missing, an Fb3Error where one cannot be read."""
    if not all(stored_file(data / name).is_file() for name in files.markers()):
        return None
    test = read_table(data / files.test, [])
    return PublicFiles(test, read_table(data / files.sample, []) if files.sample else test)


def public_paths(data: Path, settings: DataSettings) -> list[Path]:
    """The public files as they are stored, with the files and folders that are joined to them where those are there."""
    further = [*joined_files(settings, data, "test").values()]
    further += [data / name for name in (settings.frames.files if settings.frames else ())]
    there = [path for path in further if path.exists()]
    return list(dict.fromkeys([*(stored_file(data / name) for name in settings.files.markers()), *there]))


def invented_files(recipe: Recipe, data: Path) -> PublicFiles:
    """Public files that fit a recipe: two ids of FB3's form, and the middle of the range for every score.

    They have the columns of texts, or, where data.prepare may read any, all of train.csv but the targets.
    """
    settings, target = recipe.data, target_of(recipe)
    ids = pd.DataFrame({settings.id_column: ["0123456789AB", "FEDCBA987654"]}, dtype=object)
    columns = settings.text_columns()
    if settings.prepare:
        known = {settings.id_column, *target.labels, settings.weight_column, FOLD_COLUMN}
        columns = [name for name in read_table(data / settings.files.train, []).columns if name not in known]
    test = ids.assign(**dict.fromkeys(columns, ""))
    cells = target.render(np.stack([target.middle()] * len(ids)), target.forms()[0])
    return PublicFiles(test, pd.concat([ids, cells.astype(str)], axis=1))


def write_hidden_test(
    data: Path, recipe: Recipe, public: PublicFiles, out: Path, rows: int, seed: int = 0
) -> dict[str, str]:
    """Writes test.csv and sample_submission.csv with training rows, odd essays, copies, and ids in different orders.

    The files that the recipe joins to test.csv are written too, from the columns joined to the same training rows, and
    a file with the frames of these rows; some have none there, or twice as many as are read.

    Args:
        data: the folder with train.csv. A hidden row takes all its cells from one row of it; cells of columns that only
            the public test.csv has come from one row of that file.
        recipe: names the columns of ids and texts.
        public: gives the columns, their order, the form of the ids and the sample's values.
        out: the folder to write.
        rows: number of essays.
        seed: seed of the draw.

    Returns:
        For each id whose texts are a copy of an earlier row's, that row's id.

    Raises:
        Fb3Error: train.csv cannot be read, or lacks a text column.
    """
    settings, files = recipe.data, recipe.data.files
    train, joined = read_joined(data / files.train, settings, "train", settings.text_columns())
    if settings.frames:
        train[FRAMES_COLUMN] = find_frames(train[settings.id_column].tolist(), settings.frames, data, True)
    if settings.prepare:  # it got every join of train
        given = {*public.test.columns, *(name for join in joined for name in join.columns)}
        joined = [join for join in joined if join.settings.on in given]
    columns = [name for name in public.test.columns if not any(name in join.columns for join in joined)]
    columns += [join.settings.on for join in joined if join.settings.on not in columns]
    rng = np.random.default_rng(seed)
    test = train.iloc[rng.integers(0, len(train), rows)].reset_index(drop=True)
    others = public.test.iloc[rng.integers(0, len(public.test), rows)].reset_index(drop=True)
    absent = [name for name in columns if name not in train.columns]
    test = pd.concat([test, others[absent]], axis=1)
    text = settings.text_column
    if text not in train.columns:  # data.prepare makes it, most likely of the longest texts
        text = guess_columns(train[[name for name in train if name in {*columns, *given}]]).text or settings.id_column
    odd = list({**ODD, "longest": " ".join([max(train[text], key=len)] * 5)}.values())[:rows]
    for copy in range(min(_COPIES, (rows - len(odd)) // 2)):
        test.loc[rows - 1 - copy] = test.loc[len(odd) + copy]
    test.loc[: len(odd) - 1, text] = odd
    test.loc[0, [name for name in settings.text_columns() if name in columns]] = ""
    for join in joined:
        if text in join.columns and join.settings.on != settings.id_column:  # odd texts: keys of their own
            keys = ids_like(train[join.settings.on].tolist(), 2 * len(train) + len(odd), rng)
            new = [key for key in keys if key not in {*train[join.settings.on]}]
            test.loc[: len(odd) - 1, join.settings.on] = new[: len(odd)]
    test = test.sample(frac=1, random_state=seed).reset_index(drop=True)
    identifier = settings.id_column
    test[identifier] = ids_like(public.sample[identifier].tolist(), rows, rng)
    write_table(test[columns], _new_file(out / files.test))
    for join in joined:
        _write_joined(test, join, out)
    if settings.frames:
        write_hidden_frames(test, settings, out)
    sample = public.sample.iloc[rng.integers(0, len(public.sample), rows)].assign(
        **{identifier: test[identifier].values}
    )
    if files.sample:
        write_table(sample.sample(frac=1, random_state=seed + 1), _new_file(out / files.sample))
    with suppress(Fb3Error):  # where data.prepare breaks on these rows, the inference on them tells it
        return _copies(read_split(out / files.test, settings, "test", []) if settings.prepare else test, settings)
    return {}


def _copies(essays: pd.DataFrame, settings: DataSettings) -> dict[str, str]:
    """For each id whose texts are a copy of an earlier row's, that row's id."""
    texts, first = essays[list(settings.input_columns())].itertuples(index=False, name=None), dict[tuple, str]()
    ids = zip(essays[settings.id_column], texts, strict=True)
    return {own: first[essay] for own, essay in ids if first.setdefault(essay, own) != own}


def _new_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_joined(test: pd.DataFrame, join: Joined, out: Path) -> None:
    """Writes the file, or the folder of texts, that gives the hidden rows a join's columns."""
    key, path = join.settings.on, out / join.settings.name("test")
    rows = test[[key, *join.columns]].drop_duplicates(key)
    if join.settings.file:
        write_table(rows, _new_file(path))
        return
    for name, text in rows.itertuples(index=False, name=None):
        write_text(text, path / f"{name}.txt")


def ids_like(real: list[str], count: int, rng: np.random.Generator) -> list[str]:
    """Draws `count` different ids of the form of real ones.

    Forms are whole numbers, numbers with leading zeros, hexadecimal, and changing digits or letters between fixed
    characters.
    """
    if all(each.isdecimal() and each == str(int(each)) for each in real):
        size = min(max(10 ** max(map(len, real)), 10 * count), 2**62)
        return [str(number) for number in rng.choice(size, count, replace=False)]
    real = [*dict.fromkeys(real)]
    found: dict[str, None] = {}
    for draw in range(30 * count):
        if len(found) == count:
            break
        longer = rng.choice(list(_DIGITS), draw // (3 * count))  # longer ids where the form has too few
        found["".join([*_like(real, rng), *longer])] = None
    return list(found)


def _like(real: list[str], rng: np.random.Generator) -> list[str]:
    """The characters of one real id, drawn anew at each position where ids of its length differ."""
    model = real[rng.integers(len(real))]
    alike = [each for each in real if len(each) == len(model)]
    changing = [p for p, c in enumerate(model) if c.isalnum() and (len(alike) == 1 or len({i[p] for i in alike}) > 1)]
    there = {each[p] for each in alike for p in changing}
    characters = list(model)
    for position in changing:
        own = model[position]
        characters[position] = str(rng.choice(list(next((a for a in _ALPHABETS if there <= {*a}), _class_of(own)))))
    return characters


def _class_of(character: str) -> str:
    return next((kind for kind in (_DIGITS, *_LETTERS) if character in kind), character)
