"""JSON files as tables of text: every record a row, every cell as a CSV of the same table would hold it."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from fb3.errors import Fb3Error
from fb3.system.files import reading_utf8, write_text

JSON = (".json", ".jsonl")


def read_json_table(path: Path, form: str, largest: int) -> pd.DataFrame:
    """Reads records with every cell as text; a missing value, or one of null or NaN, becomes an empty cell.

    A list of texts, or of records that have a `text` each, becomes these texts, a line each: texts found in the frames
    of a video come like that. Other lists and records stay JSON.

    Args:
        path: the file, perhaps compressed.
        form: ".json", a list of records, or ".jsonl", a record a line.
        largest: the most bytes that it may have unpacked.

    Raises:
        Fb3Error: no JSON, no records, or a key twice in one.
    """
    with reading_utf8(path, largest) as stream:
        if form == ".json":
            records = _parsed(stream.read(), str(path))
        else:
            lines = ((number, line) for number, line in enumerate(stream, 1) if line.strip())
            records = [_parsed(line, f"{path}: line {number}") for number, line in lines]
    if not isinstance(records, list) or not records:
        got = "an empty list" if records == [] else type(records).__name__
        raise Fb3Error(f'{path}: want a list of records, such as [{{"id": "a", "title": "b"}}], got {got}')
    for row, record in enumerate(records, 1):
        if not isinstance(record, dict) or not record:
            raise Fb3Error(f"{path}: record {row} is {_text(record)[:40]!r}, want names and values; mend the file")
    names = list(dict.fromkeys(name for record in records for name in record))
    return pd.DataFrame(
        [[_text(record.get(name)) for name in names] for record in records], columns=names, dtype=object
    )


def write_json_table(table: pd.DataFrame, path: Path) -> None:
    """Writes a table of texts as records, as `read_json_table` reads them."""
    lines = [json.dumps(record, ensure_ascii=False) for record in table.to_dict("records")]
    write_text("\n".join(lines) + "\n" if path.suffix.lower() == ".jsonl" else f"[{', '.join(lines)}]", path)


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_record, parse_constant=lambda name: None if name == "NaN" else name)
    except (ValueError, RecursionError) as error:
        raise Fb3Error(f"{place}: not JSON ({error}); download it again, or save it as CSV") from None


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} stands twice in a record")
    return record


def _text(value: Any) -> str:
    """A value as the cell of a CSV would hold it."""
    if isinstance(value, list) and value:
        texts = [each.get("text") if isinstance(each, dict) else each for each in value]
        if all(isinstance(each, str) for each in texts):
            return "\n".join(texts)
    if value is None or value == []:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
