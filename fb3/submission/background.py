"""Work that threads do while torch is imported: hashing the folds' files, and tokenising the essays for each run."""

from collections.abc import Sequence
from concurrent.futures import Future, wait
from functools import partial
from itertools import pairwise
from pathlib import Path

import pandas as pd

from fb3.bundles.bundle import Bundle
from fb3.data.tokens import Encoded, encode_essays
from fb3.errors import Fb3Error
from fb3.prediction.estimators.feature_inputs import FeatureInputs
from fb3.prediction.member_inputs import encode
from fb3.recipe.data import DataSettings
from fb3.recipe.frames import FRAMES_COLUMN
from fb3.runs.run_folder import Member
from fb3.system.files import sha256
from fb3.system.prefetch import in_background

Tokens = dict[str, Future[Encoded | FeatureInputs]]  # each run's tokens in the making, by its name
_SAME_TOKENS = {"augment", "sample", "prepare"}  # data settings that change no token here; prepare ran before


def begin_tokens(members: Sequence[Member], essays: pd.DataFrame) -> Tokens:
    """Begins to tokenise the essays, run after run; runs that tokenise alike share the result."""
    futures = in_background(partial(_encode, essays, {}), members)
    return {member.name: future for member, future in zip(members, futures, strict=True)}


def _encode(essays: pd.DataFrame, made: dict[tuple, Encoded], member: Member) -> Encoded | FeatureInputs:
    try:
        return encode(member, essays, partial(_tokenise, made))
    except Exception:
        raise
    except BaseException as error:  # a panic inside tokenizers is no Exception, and must cost this run only
        raise Fb3Error(f"{member.path}: cannot tokenise ({error!r})") from None


def _tokenise(made: dict[tuple, Encoded], essays: pd.DataFrame, folder: Path, data: DataSettings) -> Encoded:
    tokenizers = map(sha256, sorted(folder.rglob("tokenizer.json")))
    # One run may read vectors and another the pixels, both by the same settings: their files differ.
    frames = {each.file for each in essays[FRAMES_COLUMN]} if data.frames else ()
    key = (*tokenizers, data.model_dump_json(exclude=_SAME_TOKENS), *sorted(frames))
    if key not in made:
        made[key] = encode_essays(essays, folder, data)
    return made[key]


class FoldChecks:
    """Compares the folds' files with the manifest in threads: the first fold's while torch is imported, each other's
    while the fold before it computes. The weights are in the system's file cache then, so that they load fast.

    Args:
        packed: the bundle.
        folders: the fold folders, in the order in which they will be used.
    """

    def __init__(self, packed: Bundle, folders: Sequence[Path]) -> None:
        self._packed, self._next = packed, dict(pairwise(folders))
        self._begun: dict[Path, Future[None]] = {}
        for folder in folders[:1]:
            self._begin(folder)

    def wait(self, folder: Path) -> None:
        """Waits until a fold is checked, begins with the next, and raises the Fb3Error of `Bundle.check`, if any."""
        check = self._begin(folder)
        wait([check])
        if folder in self._next:
            self._begin(self._next[folder])
        check.result()

    def _begin(self, folder: Path) -> Future[None]:
        if folder not in self._begun:
            (self._begun[folder],) = in_background(self._packed.check_fold, [folder])
        return self._begun[folder]
