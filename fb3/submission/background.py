"""The test essays as tokens of a bundle's runs, made in a thread while torch is imported."""

from collections.abc import Sequence
from concurrent.futures import Future
from threading import Thread

import pandas as pd

from fb3.bundles.bundle import Member
from fb3.data.tokenizer import encode_essays
from fb3.data.tokens import Encoded
from fb3.errors import Fb3Error
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
