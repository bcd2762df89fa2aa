"""fb3's exceptions, and helpers for their messages."""

from collections.abc import Iterable
from difflib import get_close_matches

_LONGEST = 4000  # characters of a message, which may quote a cell of any size
_LIKE = 0.7  # similarity above which a known word is suggested; "metric" and "tricks" have 0.67


class Fb3Error(ValueError):
    """An error that the user can mend. The message names the file, the row or key, and the mend."""

    def __init__(self, message: object = "") -> None:
        super().__init__(shortened(str(message), _LONGEST))


class DiskFull(Fb3Error):
    """A disk or a quota is full. The message says where, and how much is free."""


class Stopped(Exception):
    """A training was asked to stop, and is saved. The message says where, and how to resume it."""


class RuleError(Fb3Error):
    """Settings have the right types, but a rule refuses them, mostly because they do not go together."""


def shortened(text: str, longest: int = 200) -> str:
    """A text for a message, its middle left out beyond `longest` characters."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} […] {text[-half:]}"


def likeliest(word: str, known: Iterable[str]) -> list[str]:
    """The known word most similar to `word`, else the known words that begin with it."""
    known = list(known)
    alike = get_close_matches(word, known, n=1, cutoff=_LIKE)
    return alike or [other for other in known if len(word) > 2 and other.startswith(word)]


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: a suggestion, else all known words."""
    known = list(known)
    likely = likeliest(word, known)
    return f"did you mean {likely[0]!r}?" if likely else f"known: {', '.join(known)}"


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names for a message, in brackets, at most so many of them."""
    names = list(names)
    return f"{names[:most]}" + (f" and {len(names) - most} more" if len(names) > most else "")


def one_line(error: object, longest: int = 200) -> str:
    """An exception's own words in one line of at most `longest` characters; its class's name where it has none."""
    return " ".join(str(error).split())[:longest] or type(error).__name__
