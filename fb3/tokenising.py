"""The test essays as tokens of a bundle's runs, made in a thread while torch is imported."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import pandas as pd

from fb3.ahead import begun
from fb3.bundle import Member
from fb3.encoding import encode_essays
from fb3.files import sha256
from fb3.layout import ENCODER
from fb3.tokens import Encoded

Tokens = dict[str, Encoded | Exception]  # by the run's name; or why it has none
_NOT_OF_TOKENS = {"augment", "sample"}


def begin_tokens(members: Sequence[Member], essays: pd.DataFrame) -> Future[Tokens]:
    """The essays for each run, once for all runs that tokenise alike."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="fb3-tokens")
    try:
        return begun(pool, lambda given: _encode(members, given), essays)
    finally:
        pool.shutdown(wait=False)


def _encode(members: Sequence[Member], essays: pd.DataFrame) -> Tokens:
    made: dict[tuple, Encoded] = {}
    found: Tokens = {}
    for member in members:
        data, folder = member.recipe.data, member.path / ENCODER
        try:
            alike = (*map(sha256, sorted(folder.rglob("tokenizer.json"))), data.model_dump_json(exclude=_NOT_OF_TOKENS))
            if alike not in made:
                made[alike] = encode_essays(essays, folder, data)
            found[member.name] = made[alike]
        except Exception as error:  # the run's own, whatever it is: the others go on
            found[member.name] = error
    return found
