"""`fb3 init`: a first recipe for a competition's files, as YAML with the reason for each setting."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path

import yaml

from fb3.errors import Fb3Error
from fb3.initial_recipe.competition_tables import CompetitionTables, read_tables
from fb3.initial_recipe.frame_guess import frame_files
from fb3.initial_recipe.setting_guesses import IMAGES, Setting, guess_settings
from fb3.recipe import Recipe, builtin_names, builtin_text, load_competition
from fb3.system.files import write_text
from fb3.system.progress import as_command
from fb3.targets.build import target_of

_HEAD = '# Written by fb3 init. "A guess" marks what no file says for sure: look at it.\n'


def write_initial_recipe(data: Path, out: Path, competition: str | None = None) -> list[str]:
    """Writes a recipe for the files in a folder, and says why it is so.

    Args:
        data: the folder.
        out: the YAML to write; it may not exist.
        competition: a built-in competition whose YAML is taken, once its files are found; none: the built-in one whose
            files these are, else guesses.

    Returns:
        Lines for a reader: each setting with its reason, and the commands to go on with.

    Raises:
        Fb3Error: `out` exists; files that are missing, or not the competition's; no column can be the id, text or
            target.
    """
    if out.exists():
        raise Fb3Error(f"{out}: is there already; give another --out, or delete it")
    tables = read_tables(data)
    known = competition or _known_competition(tables)
    if known:
        text, wrong = builtin_text(known, "competition"), misfits(load_competition(known), tables)
        if wrong:
            raise Fb3Error(
                f"{data}: not the files of {known}: {'; '.join(wrong)}; leave --competition out to have them guessed"
            )
        lines = [f"these are the files of {known}; its settings need no guess, see: fb3 competitions {known}"]
        lines += _without_frames(known, tables)
    else:
        settings = guess_settings(tables)
        text, lines = _HEAD + recipe_text(settings), [said(setting) for setting in settings]
    write_text(text, out)
    base = ["fb3", "train", "tiny", "--competition", known or out, "--data", data, "--out"]
    return [
        *lines,
        f"{out}: written; lay it under a recipe with --competition {out}, or add a `model` and train it by itself",
        f"next: {as_command([*base, 'runs/try', '--debug'])}",
        "then, for a score, a recipe of `fb3 recipes` in place of tiny, without --debug",
    ]


def _without_frames(known: str, tables: CompetitionTables) -> Iterable[str]:
    """Says how to go on where the files of a built-in competition's frames are not there."""
    frames, folder = load_competition(known).data.frames, tables.folder
    if not frames or any((folder / name).exists() for name in frames.files):
        return
    yield f"WARNING: {folder} holds none of {list(frames.files)}, its vectors of frames; make or fetch them first"
    identifier = load_competition(known).data.id_column
    if pictures := frame_files(folder, *(each.table[identifier] for each in (tables.train, tables.test)))[1]:
        making = ["fb3", "features", IMAGES, "--data", folder, "--out", folder / frames.files[0]]
        yield f"{', '.join(pictures)} hold pictures; any image encoder makes the vectors: {as_command(making)}"
    yield "or train a recipe of texts alone, with data.frames=null"


def _known_competition(tables: CompetitionTables) -> str | None:
    """The built-in competition whose files these are; the generic one only where no other fits."""
    fitting = [name for name in builtin_names("competition") if not misfits(load_competition(name), tables)]
    return min(fitting, key=lambda name: load_competition(name).competition is None, default=None)


def misfits(recipe: Recipe, tables: CompetitionTables) -> list[str]:
    """The differences between what a competition's recipe reads and the files' columns, in words."""
    target, data, sample = target_of(recipe), recipe.data, tables.sample_columns()
    names = [each and each.name for each in (tables.train, tables.test, tables.sample)]
    if names != (known := [data.files.train, data.files.test, data.files.sample]):
        return [f"its files are {known}, there are {names}"]
    joined = {name for join in data.files.joins for name in join.columns or data.text_columns()[1:]}
    texts = [data.id_column, *(name for name in data.text_columns() if name not in joined)]
    further = [name for name in recipe.folds.columns() if name not in joined]
    wanted = [(tables.train, [*texts, *data.target_columns, *further]), (tables.test, texts)]
    wrong = [
        f"{each.name} has no column {missing}, it has {list(each.table.columns)}"
        for each, columns in wanted
        if (missing := [name for name in columns if name not in each.table.columns])
    ]
    forms = [{data.id_column, *form} for form in target.forms()]
    if tables.sample and {*sample} not in forms:
        wrong.append(
            f"{tables.sample.name} has the columns {sample}, not {data.id_column} and {list(target.forms()[0])}"
        )
    return wrong


def said(setting: Setting) -> str:
    """A setting in a line: as an override, with its reason."""
    value = _flow(setting.value)
    return f"{'perhaps ' if setting.suggested else ''}{setting.key}={value}: {_reason(setting)}"


def recipe_text(settings: Sequence[Setting]) -> str:
    """The settings as YAML, each below its reason; what is only suggested stands in comments."""
    blocks = []
    for group, members in groupby(settings, key=lambda setting: setting.key.partition(".")[0]):
        blocks += _block(group, list(members))
    return "\n".join(blocks) + "\n"


def _block(group: str, settings: list[Setting]) -> Iterable[str]:
    """A group's lines, its name first where its settings have names of their own."""
    inner = "  " if "." in settings[0].key else ""
    off = "# " if all(setting.suggested for setting in settings) else ""
    if inner:
        yield f"{off}{group}:"
    reason = ""
    for setting in settings:
        if reason != (reason := _reason(setting)):
            yield f"{off}{inner}# {reason}"
        mark = "# " if setting.suggested and not off else ""
        yield f"{off}{inner}{mark}{setting.key.rpartition('.')[2]}: {_flow(setting.value)}"


def _reason(setting: Setting) -> str:
    return setting.why if setting.sure else f"{setting.why} (a guess)"


def _flow(value: object) -> str:
    """A value as YAML in one line."""
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False).strip()[
        1:-1
    ]
