"""The test essays as tokens of a bundle's runs, made in a thread while torch is imported."""

from collections.abc import Sequence
from concurrent.futures import Future
from itertools import pairwise
from pathlib import Path
from threading import Thread

import pandas as pd

from fb3.bundles.bundle import Bundle
from fb3.data.tokens import Encoded, encode_essays
from fb3.errors import Fb3Error
from fb3.runs.run_folder import Member
from fb3.system.file_names import ENCODER
from fb3.system.files import sha256

Tokens = dict[str, Future[Encoded]]  # by the run's name
_NOT_OF_TOKENS = {"augment", "sample"}


def begin_tokens(members: Sequence[Member], essays: pd.DataFrame) -> Tokens:
    """The essays for each run, run after run, once for all runs that tokenise alike; a cancelled one is left out.

    The thread is a daemon: one essay may take longer than the deadline allows, and the process is to end all the same.
    """
    tokens: Tokens = {member.name: Future() for member in members}
    thread = Thread(target=_encode, args=(members, essays, tokens), name="fb3-tokens", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no thread to be had
        thread.run()
    return tokens


def _encode(members: Sequence[Member], essays: pd.DataFrame, tokens: Tokens) -> None:
    made: dict[tuple, Encoded] = {}
    for member in members:
        data, folder = member.recipe.data, member.path / ENCODER
        if not tokens[member.name].set_running_or_notify_cancel():
            continue
        try:
            alike = (*map(sha256, sorted(folder.rglob("tokenizer.json"))), data.model_dump_json(exclude=_NOT_OF_TOKENS))
            if alike not in made:
                made[alike] = encode_essays(essays, folder, data)
            tokens[member.name].set_result(made[alike])
        except BaseException as error:  # the run's own, whatever it is; a panic of the tokenizers' is no Exception
            own = error if isinstance(error, Exception) else Fb3Error(f"{folder}: cannot tokenise ({error!r})")
            tokens[member.name].set_exception(own)


class Checks:
    """Compares folds with the manifest ahead of their turns, the first while torch is imported, each other one while
    the fold before it computes. The weights are in the system's file cache then, so that loading them costs little.

    Args:
        packed: the bundle.
        folders: of the folds, in the order in which they will be used.
    """

    def __init__(self, packed: Bundle, folders: Sequence[Path]) -> None:
        self._packed, self._next = packed, dict(pairwise(folders))
        self._begun: dict[Path, _Check] = {}
        for folder in folders[:1]:
            self._begin(folder)

    def wait(self, folder: Path) -> None:
        """Until a fold is checked; begins with the next.

        Raises:
            Fb3Error: as `Bundle.check` does.
        """
        check = self._begin(folder)
        if check.is_alive():
            check.join()
        if folder in self._next:
            self._begin(self._next[folder])
        if check.error:
            raise check.error

    def _begin(self, folder: Path) -> "_Check":
        if folder not in self._begun:
            self._begun[folder] = check = _Check(self._packed, folder)
            try:
                check.start()
            except RuntimeError:  # no thread to be had
                check.run()
        return self._begun[folder]


class _Check(Thread):
    """One fold's; a daemon, so that a disk that hangs does not keep the process from ending."""

    def __init__(self, packed: Bundle, folder: Path) -> None:
        super().__init__(daemon=True)
        self.packed, self.folder = packed, folder
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.packed.check_fold(self.folder)
        except Exception as error:
            self.error = error
