"""Parquet files as tables of text: every cell as a CSV of the same table would hold it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fb3.errors import Fb3Error, one_line
from fb3.system.compressed_files import too_large


def read_parquet(path: Path, largest: int) -> pd.DataFrame:
    """Reads a parquet file with every cell as text; a missing value becomes an empty cell.

    Args:
        path: the file.
        largest: the most bytes that it may have unpacked.

    Raises:
        Fb3Error: pyarrow is not installed; the file is broken or too large; a column holds bytes that are no UTF-8.
    """
    try:
        import pyarrow.parquet
    except ImportError:
        raise Fb3Error(f"{path}: reading parquet wants pyarrow; pip install pyarrow, or save the file as CSV") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            groups = (file.metadata.row_group(number) for number in range(file.metadata.num_row_groups))
            if sum(group.total_byte_size for group in groups) > largest:
                raise too_large(path, largest)
            table = file.read()
    except (OSError, pyarrow.ArrowException) as error:
        raise Fb3Error(f"{path}: cannot be read as parquet ({one_line(error)}); download it again") from None
    columns = [_texts(column, f"{path}: column {name}") for name, column in zip(table.schema.names, table, strict=True)]
    texts = np.empty((table.num_rows, len(columns)), object)
    for number, column in enumerate(columns):
        texts[:, number] = column
    return pd.DataFrame(texts, columns=table.schema.names, dtype=object)


def _texts(column: Any, place: str) -> list[str]:
    """The cells of a column of pyarrow. Whole numbers stay whole beside missing ones, which pandas makes fractions."""
    import pyarrow.types

    if pyarrow.types.is_float16(column.type) or pyarrow.types.is_float32(column.type):  # 0.1, not 0.10000000149011612
        missing, numbers = np.array(column.is_null(nan_is_null=True)), column.to_numpy()
        return ["" if absent else str(number) for absent, number in zip(missing, numbers, strict=True)]
    cells = column.to_pylist()
    if any(isinstance(cell, bytes) for cell in cells):
        try:
            cells = [cell if cell is None else cell.decode() for cell in cells]
        except UnicodeDecodeError as error:
            raise Fb3Error(f"{place} holds bytes that are no UTF-8 ({error.reason}); save it as text") from None
    return ["" if cell is None or cell != cell else str(cell) for cell in cells]
