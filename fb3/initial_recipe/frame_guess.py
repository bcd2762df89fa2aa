"""A guess at files with frames or pictures beside the tables: the ones that know the tables' ids."""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from fb3.data.frames.frame_files import open_frames
from fb3.data.frames.frame_references import open_pictures

_HALF = 0.5  # share of the training rows that must have frames


def frame_files(folder: Path, train: Collection[str], test: Collection[str]) -> tuple[list[str], list[str]]:
    """The files of vectors, and the files or folders of pictures, by their names within `folder`.

    Of files that know the same rows the first by name is taken.

    Args:
        folder: the competition's; files in it and a folder below count.
        train: ids of the training rows, half of which must be known.
        test: ids of the rows to predict.
    """
    paths = [*_candidates(folder)]
    kinds = (lambda path: open_frames(path).ids, lambda path: open_pictures([path])[0].items)
    vectors, pictures = (_known(paths, ids_of, {*train}, {*test}) for ids_of in kinds)
    return tuple([path.relative_to(folder).as_posix() for path in each] for each in (vectors, pictures))


def _candidates(folder: Path) -> Iterator[Path]:
    for path in [*sorted(folder.iterdir()), *sorted(folder.glob("*/*"))]:
        if path.is_dir() or (path.is_file() and path.suffix.lower() in (".npz", ".zip")):
            yield path


def _known(paths: list[Path], ids_of: Callable[[Path], Collection[str]], train: set[str], test: set[str]) -> list[Path]:
    """The paths whose ids are the tables', no id twice; none where too few training rows are known."""
    taken, seen = list[Path](), set[str]()
    for path in paths:
        if any(other in path.parents for other in taken):
            continue
        try:
            ids = {*ids_of(path)}
        except Exception:  # a file of another kind, encrypted or broken: numpy and zipfile have many types of errors
            continue
        if ids & (train | test) and not ids & seen:
            taken.append(path)
            seen |= ids
    return taken if len(seen & train) >= _HALF * len(train) else []
