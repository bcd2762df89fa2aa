"""The one exception of fb3 for what the user can mend."""

from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST = 4000  # characters of a message: what it quotes may be a cell of any size

_LIKE = 0.7  # least likeness of a hint: metric and tricks have 0.67


class Fb3Error(ValueError):
    """Bad input or an impossible setting. The message names the file, the row or key, and the mend."""

    def __init__(self, message: object = "") -> None:
        super().__init__(shortened(str(message), _LONGEST))


class NoRoom(Fb3Error):
    """A disk, or a quota of it, is full. The message says where, and how much room there is."""


class Stopped(Exception):
    """A training was asked to stop and stands saved. The message says where, and how to go on."""


class RuleError(Fb3Error):
    """Settings of the right form that a rule refuses, mostly because they do not go together."""


def shortened(text: str, longest: int = 200) -> str:
    """A quotation of at most `longest` characters, its middle left out: a cell or a line may be of any size."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} […] {text[-half:]}"


def likeliest(word: str, known: Iterable[str]) -> list[str]:
    """The known word that looks like `word`, else those that it begins."""
    known = list(known)
    alike = get_close_matches(word, known, n=1, cutoff=_LIKE)
    return alike or [other for other in known if len(word) > 2 and other.startswith(word)]


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a sentence: the known word that `word` is likely to mean, else all of them."""
    known = list(known)
    likely = likeliest(word, known)
    return f"did you mean {likely[0]!r}?" if likely else f"known: {', '.join(known)}"


def one_line(error: object, longest: int = 200) -> str:
    """An exception's own words in one line of at most `longest` characters; its class's name where it has none."""
    return " ".join(str(error).split())[:longest] or type(error).__name__
