"""The tables in a competition's folder, told apart by their names and columns."""

import os
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fb3.data.tables import read_table
from fb3.errors import Fb3Error

_SUFFIXES = (".csv", ".tsv", ".txt", ".parquet", ".json", ".jsonl")
_COMPRESSED = (".zip", ".gz")
_LABELLED = re.compile("label+ed")  # how names of tables begin that others call train


class CompetitionTable(NamedTuple):
    """A table and its file's name, without the suffix of its compression."""

    name: str
    table: pd.DataFrame


class CompetitionTables(NamedTuple):
    """The tables of a folder; `further` holds other tables of train that have their counterpart for test."""

    folder: Path
    train: CompetitionTable
    test: CompetitionTable
    sample: CompetitionTable | None
    further: list[CompetitionTable]

    def sample_columns(self) -> list[str]:
        """The sample submission's columns; empty where there is none."""
        return list(self.sample.table.columns) if self.sample else []


def read_tables(folder: Path) -> CompetitionTables:
    """Reads the tables with `train`, `test` and `sample` in their names.

    They may stand a folder below, where other files or folders stand beside it. Of several the one is taken whose
    columns fit: train has the sample's, test those of train that are no targets.

    Raises:
        Fb3Error: no such folder, no table of that sort, or one that cannot be read.
    """
    names = _table_names(folder)
    plain = {name: name.rpartition("/")[2].lower() for name in names}
    roles = {word: [name for name in names if word in plain[name]] for word in ("sample", "train", "test")}
    if not roles["sample"]:
        roles["sample"] = [name for name in names if "submission" in plain[name]]
    if not roles["train"]:
        roles["train"] = [name for name in names if _LABELLED.match(plain[name])]
    for word in ("train", "test"):
        roles[word] = [name for name in roles[word] if name not in roles["sample"]]
        if not roles[word]:
            raise Fb3Error(f"{folder}: no table with '{word}' in its name; there {_listed(names)}{_mend(folder)}")
    tables = {
        name: CompetitionTable(name, read_table(folder / names[name], [])) for each in roles.values() for name in each
    }
    of = {word: [tables[name] for name in each] for word, each in roles.items()}
    sample = min(of["sample"], key=lambda each: len(each.name), default=None)
    wanted = [*sample.table.columns] if sample else []
    train = _best(of["train"], lambda columns: sum(name in columns for name in wanted))
    kept = [name for name in train.table.columns if name not in wanted[1:]]
    test = _best(of["test"], lambda columns: sum(name in columns for name in kept))
    further = [each for each in of["train"] if each != train and each.name.replace("train", "test") in roles["test"]]
    return CompetitionTables(folder, train, test, sample, further)


def _best(tables: Sequence[CompetitionTable], fit: Callable[[list[str]], int]) -> CompetitionTable:
    """The table that fits best; of equals the one with the shortest name."""
    return max(tables, key=lambda each: (fit(list(each.table.columns)), -len(each.name)))


def _table_names(folder: Path) -> dict[str, str]:
    """The files that hold tables, of the folder or the one below, by their names without their compression's suffix."""
    if not folder.is_dir():
        raise Fb3Error(f"{folder}: no such folder; give the folder of the competition's files with --data")
    if (found := _tables_of(folder)) or len(below := _below(folder)) != 1 or len([*folder.iterdir()]) == 1:
        return found
    return {f"{below[0].name}/{name}": f"{below[0].name}/{file}" for name, file in _tables_of(below[0]).items()}


def _tables_of(folder: Path) -> dict[str, str]:
    found = {}
    for file in sorted(folder.iterdir()):
        name = file.stem if file.suffix.lower() in _COMPRESSED else file.name
        if file.is_file() and name.lower().endswith(_SUFFIXES):
            found.setdefault(name, file.name)
    return found


def _below(folder: Path) -> list[Path]:
    """The folders in a folder that hold a table to train on."""
    readable = [each for each in sorted(folder.iterdir()) if each.is_dir() and os.access(each, os.R_OK | os.X_OK)]
    return [each for each in readable if any(map(_trains, _tables_of(each)))]


def _trains(name: str) -> bool:
    return ("train" in name.lower() or bool(_LABELLED.match(name.lower()))) and not name.lower().endswith(".txt")


def _listed(names: Collection[str]) -> str:
    return f"are {', '.join(names)}" if names else "is no table at all"


def _mend(folder: Path) -> str:
    """The end of a message about a missing table: where the files may be."""
    archives = [file.name for file in sorted(folder.iterdir()) if file.suffix.lower() == ".zip"]
    if below := _below(folder):
        return f"; did you mean --data {below[0]}?"
    return f"; unpack {archives[0]}: unzip -d {folder} {folder / archives[0]}" if archives else ""
