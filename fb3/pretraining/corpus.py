"""The texts that pretraining reads: the competition's and further ones, each once, and the ones held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.data.folds import FoldSplit
from fb3.data.joins import joined_files, read_split
from fb3.errors import Fb3Error
from fb3.recipe import Recipe
from fb3.runs.provenance import text_hashes
from fb3.system.compressed_files import stored_file
from fb3.system.files import sha256


@dataclass(frozen=True)
class Corpus:
    """M texts.

    table: their text columns, and `hash`, which is no other text's. groups: (M,) whole numbers, equal for texts on one
    prompt. split: the texts that are trained on and the ones that are held out. digests: hashes of the files.
    """

    table: pd.DataFrame
    groups: np.ndarray
    split: FoldSplit
    digests: dict[str, str]

    @property
    def hashes(self) -> np.ndarray:
        """The texts' hashes, (M,)."""
        return self.table["hash"].to_numpy()


def read_corpus(recipe: Recipe, data: Path, files: Sequence[Path]) -> Corpus:
    """Reads the training essays of a recipe and further texts; scores and ids are not read.

    A text that stands there twice is read once, so that none is trained on and held out too.

    Args:
        recipe: names the columns; folds.group_column says which essays are on one prompt, and folds.seed what is held
            out.
        data: the competition's folder.
        files: tables with the same text columns.

    Raises:
        Fb3Error: a table cannot be read or lacks a column; too few texts.
    """
    settings, group = recipe.data, recipe.folds.group_column
    train = stored_file(data / settings.files.train)
    tables = []
    for number, path in enumerate([train, *files]):
        wanted = [*settings.text_columns(), *([group] if group and not number else [])]
        table = read_split(path, settings, "train", wanted, "; data.text_column names the texts", folder=data)
        kept = [column for column in dict.fromkeys([*wanted, group]) if column in table.columns]
        tables.append(table[kept])
    table = pd.concat(tables, ignore_index=True)
    table["hash"] = text_hashes(table, settings.text_columns())
    table = table[table["hash"] != ""].drop_duplicates("hash")
    size, generator = recipe.data.sample, np.random.default_rng(recipe.folds.seed)
    order = generator.permutation(len(table))[:size]
    held = max(1, round(recipe.pretrain.holdout * len(order)))
    if len(order) - held < 1:
        raise Fb3Error(f"{train}: {len(order)} texts are too few to train on and to hold out; give more with --texts")
    table = table.iloc[np.sort(order)].reset_index(drop=True)
    places = generator.permutation(len(table))
    split = FoldSplit(0, np.sort(places[held:]), np.sort(places[:held]))
    named = {"train_sha256": train, **{f"texts{number}_sha256": path for number, path in enumerate(files, 1)}}
    named |= {f"{name}_sha256": path for name, path in joined_files(settings, data, "train").items() if path.exists()}
    named |= {"prepare_sha256": Path(settings.prepare)} if settings.prepare else {}
    groups = _groups(table, group)
    if recipe.pretrain.objective("simcse") and len(np.unique(groups)) == 1:
        raise Fb3Error(f"folds.group_column={group}: all texts have one group, so simcse has nothing to tell apart")
    return Corpus(table, groups, split, {name: sha256(path) for name, path in named.items()})


def _groups(table: pd.DataFrame, group: str | None) -> np.ndarray:
    """Numbers of the texts' prompts; a text whose prompt is not known is its own group."""
    alone = np.arange(len(table))
    if group is None or group not in table.columns:
        return alone
    numbers = pd.factorize(table[group], use_na_sentinel=True)[0]
    return np.where(numbers < 0, len(table) + alone, numbers)
