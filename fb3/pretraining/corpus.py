"""The items that pretraining reads: the competition's and further ones, each once, and the ones held out."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from fb3.data.folds import FoldSplit
from fb3.data.frames.frame_references import find_frames
from fb3.data.joins import joined_files, read_split
from fb3.errors import Fb3Error
from fb3.recipe import Recipe
from fb3.recipe.frames import FRAMES_COLUMN
from fb3.runs.provenance import text_hashes
from fb3.system.compressed_files import stored_file
from fb3.system.files import sha256


@dataclass(frozen=True)
class Corpus:
    """M texts, or items with frames beside them.

    table: their text columns, `hash`, which is no other text's, and references to frames where the recipe reads any.
    groups: (M,) whole numbers, equal for texts on one prompt, and for items of one text. split: the texts that are
    trained on and the ones that are held out. digests: hashes of the files.
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

    A text that stands there twice is read once, unless other frames stand beside it, and none is trained on and held
    out too.

    Args:
        recipe: names the columns; folds.group_column says which essays are on one prompt, and folds.seed what is held
            out.
        data: the competition's folder.
        files: tables with the same text columns. Their items have frames where a file of data.frames knows their id.

    Raises:
        Fb3Error: a table cannot be read or lacks a column; no item of the training table has frames; too few texts.
    """
    settings, group = recipe.data, recipe.folds.group_column
    train = stored_file(data / settings.files.train)
    tables = []
    for number, path in enumerate([train, *files]):
        wanted = [*settings.text_columns(), *([group] if group and not number else [])]
        table = _read_table(recipe, path, data, wanted, further=bool(number))
        kept = [column for column in dict.fromkeys([*wanted, group, FRAMES_COLUMN]) if column in table.columns]
        tables.append(table[kept])
    table = pd.concat(tables, ignore_index=True)
    table["hash"] = text_hashes(table, settings.text_columns())
    beside = [each.identifier if each.count else "" for each in table[FRAMES_COLUMN]] if settings.frames else ""
    table = table[(table["hash"] != "") & ~table.assign(beside=beside).duplicated(["hash", "beside"])]
    size, generator = recipe.data.sample, np.random.default_rng(recipe.folds.seed)
    order = generator.permutation(len(table))[:size]
    table = table.iloc[np.sort(order)].reset_index(drop=True)
    texts, known = pd.factorize(table["hash"])
    held = max(1, round(recipe.pretrain.holdout * len(known)))
    if len(known) - held < 1:
        raise Fb3Error(f"{train}: {len(known)} texts are too few to train on and to hold out; give more with --texts")
    places = generator.permutation(len(known))
    split = FoldSplit(0, *(np.flatnonzero(np.isin(texts, part)) for part in (places[held:], places[:held])))
    named = {"train_sha256": train, **{f"texts{number}_sha256": path for number, path in enumerate(files, 1)}}
    named |= {f"{name}_sha256": path for name, path in joined_files(settings, data, "train").items() if path.exists()}
    named |= {"prepare_sha256": Path(settings.prepare)} if settings.prepare else {}
    frames = settings.frames.files if settings.frames else ()
    named |= {f"{name}_sha256": data / name for name in frames if (data / name).exists()}
    groups = _groups(table, group, texts)
    if recipe.pretrain.objective("simcse") and len(np.unique(groups)) == 1:
        raise Fb3Error(f"folds.group_column={group}: all texts have one group, so simcse has nothing to tell apart")
    return Corpus(table, groups, split, {name: sha256(path) for name, path in named.items()})


def _read_table(recipe: Recipe, path: Path, data: Path, wanted: Sequence[str], further: bool) -> pd.DataFrame:
    """A table of items. A further one needs no ids, without which no file knows its items' frames."""
    settings, words = recipe.data, "; data.text_column names the texts"
    if not (settings.frames and further):
        ids = [settings.id_column] if settings.frames else []
        return read_split(path, settings, "train", [*wanted, *ids], words, folder=data)
    plain = settings.model_copy(update={"frames": None})
    table = read_split(path, plain, "train", wanted, words, folder=data)
    ids = table[settings.id_column].tolist() if settings.id_column in table.columns else [""] * len(table)
    return table.assign(**{FRAMES_COLUMN: find_frames(ids, settings.frames, data, some=False)})


def _groups(table: pd.DataFrame, group: str | None, texts: np.ndarray) -> np.ndarray:
    """Numbers of the texts' prompts; a text whose prompt is not known is its own group, whatever stands beside it."""
    if group is None or group not in table.columns:
        return texts
    numbers = pd.factorize(table[group], use_na_sentinel=True)[0]
    return np.where(numbers < 0, len(table) + texts, numbers)
