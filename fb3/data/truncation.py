"""Truncation: the tokens of a long text that stay, and how several texts share the room of one input."""

import re
from collections.abc import Sequence

from tokenizers import Tokenizer

from fb3.data.texts import NEWLINE

# Each pattern begins at a line break, so that a run of white space is looked at once.
_BLANK_LINES = re.compile(r"\n[^\S\n]*\n\s*")
_LINE_BREAKS = re.compile(rf"(?:\n|{re.escape(NEWLINE)})\s*")


def truncate(ids: list[int], room: int, how: str, paragraphs: tuple[int, int] | None = None) -> list[int]:
    """Keeps `room` tokens of a text.

    Args:
        ids: the text's tokens.
        room: tokens that may stay.
        how: head or tail: the first or the last; head_tail: half of each end (the head gets the odd one); paragraphs:
            the last paragraph, and before it as much from the text's beginning as fits. Where the first and the last
            paragraph do not fit together, each has half the room, or leaves to the other what it does not need.
        paragraphs: tokens of the first and the last paragraph; none: the text has one, and is treated as by head_tail.
    """
    if len(ids) <= room:
        return ids
    if how == "head":
        return ids[:room]
    if how == "tail":
        return ids[-room:]
    tail = room // 2
    if paragraphs:
        first, last = paragraphs
        tail = min(last, max(tail, room - first))
    return ids[: room - tail] + (ids[-tail:] if tail else [])


def end_paragraphs(text: str, tokenizer: Tokenizer) -> tuple[int, int] | None:
    """Tokens of a text's first and last paragraph; None where it has one paragraph alone.

    Blank lines separate paragraphs, or single line breaks in a text without blank lines.
    """
    begin, end = len(text) - len(text.lstrip()), len(text.rstrip())
    for pattern in (_BLANK_LINES, _LINE_BREAKS):
        if breaks := [found.span() for found in pattern.finditer(text, begin, end)]:
            offsets = tokenizer.encode(text, add_special_tokens=False).offsets
            first, last = breaks[0][0], breaks[-1][1]
            # A token's span may begin with the white space before its word, so the last paragraph counts ends.
            return sum(start < first for start, _ in offsets), sum(stop > last for _, stop in offsets)
    return None


def share_room(lengths: Sequence[int], shares: Sequence[float], room: int) -> list[int]:
    """Tokens that each of several texts may keep in a common room.

    No text gets less than its share of the room, rounded down, unless it is shorter: then the others share the rest,
    again by their shares.

    Args:
        lengths: tokens of each text.
        shares: the texts' shares, of any sum.
        room: tokens of the common room.
    """
    rooms, waiting = list(lengths), list(range(len(lengths)))
    if sum(lengths) <= room:
        return rooms
    while True:
        left, total = (
            room - sum(rooms[i] for i in range(len(rooms)) if i not in waiting),
            sum(shares[i] for i in waiting),
        )
        longer = [i for i in waiting if lengths[i] > left * shares[i] / total]
        if longer == waiting:
            break
        waiting = longer
    for i in waiting:
        rooms[i] = int(left * shares[i] / total)
    for i in waiting[: room - sum(rooms)]:  # fewer than there are texts, because only fractions are left
        rooms[i] += 1
    return rooms
