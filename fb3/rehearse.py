"""Rehearsal: the inference notebook run as the competition will run it, on hidden rows as bad as rows can be."""

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from fb3.bundle import Bundle, Member, verify_bundle
from fb3.cost import T4_FLOPS
from fb3.errors import Fb3Error
from fb3.essays import read_table
from fb3.files import read_json, write_csv, write_json
from fb3.images import Image, differing_versions, installed_closure, own_requirements
from fb3.notebook import find_notebook
from fb3.progress import say
from fb3.room import in_room
from fb3.runtime import MOUNTS, RERUN_VARIABLES, pick_device, pick_devices
from fb3.submission import check_form, check_values

_GLANCE = 40  # rows in the second layout, which is only glanced at
_COPIES = 10  # essays that are there twice
_SAME = 0.05  # largest difference of a score between two copies of an essay: other batches round otherwise in bf16
_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "FB3_DEVICE")
ODD = {
    "empty": "",
    "blank": " \t\n",
    "longest": "",  # five times the longest essay
    "emoji": "😀 👩‍👩‍👧 🏳️‍🌈 " * 30,
    "right-to-left": "שלום עולם، مرحبا بالعالم " * 30,
    "control": "a\x00b\x07c\x1b[0m\u200b\ufeff\u2028 d",
    "quotes": 'He said "no, ""never""",\nand left;\r\nNA',
    "na": "NA",
}


@dataclass
class Rehearsal:
    """The report.

    versions: packages of the image's list that are here in another version, or missing. failures: what went wrong and
    where; none: passed. notes: what a reader should know. layouts: by mount layout, rows,
    seconds by phase and peak memory in bytes. projection: seconds for the hidden rows, here and on a T4, and the share
    of the limit.
    """

    versions: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    layouts: dict[str, dict[str, Any]] = field(default_factory=dict)
    projection: dict[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return not self.failures

    def text(self) -> str:
        """For a reader."""
        lines = ["PASSED" if self.passed else "FAILED", *(f"  failure: {failure}" for failure in self.failures)]
        for name, layout in self.layouts.items():
            phases = ", ".join(f"{phase} {seconds:.1f} s" for phase, seconds in layout["phases"].items())
            memory = layout["peak_memory"] / 2**30
            lines.append(f"  {name} layout: {layout['rows']} rows in {layout['seconds']:.1f} s ({phases})")
            lines.append(f"    peak memory {memory:.2f} GiB")
        if self.projection:
            p = self.projection
            lines.append(
                f"  {p['rows']:.0f} hidden rows: about {p['here']:.0f} s on this machine, {p['share_here']:.1%} of the "
                f"limit of {p['limit_hours']:.0f} h; on a T4, by FLOPs, {p['t4']:.0f} s, {p['share_t4']:.1%}"
            )
        direct = {canonicalize_name(requirement.name) for requirement in own_requirements()} | {"python"}
        named = [f"{name} {words}" for name, words in self.versions.items() if name in direct]
        if named:
            more = f"; and {len(self.versions) - len(named)} more that these need (--json lists them)"
            lines.append(f"  other versions here than in the image: {', '.join(named)}{more}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


@in_room("keep")
def rehearse(
    bundle: str | Path, data: str | Path, image: Image, *, rows: int = 2600, keep: str | Path | None = None
) -> Rehearsal:
    """Runs notebooks/inference.ipynb on a bundle as the competition would.

    The network is cut, the inputs are read-only and mounted as Kaggle mounts them, in the new layout and in the old
    one, the working folder is empty, Kaggle's variables are set, and what neither the bundle nor the image has cannot
    be imported. Where the system allows no namespaces, sockets are blocked inside the process only, and the report says
    so.

    Args:
        bundle: the dataset folder.
        data: the folder with train.csv, whose essays make the hidden rows.
        image: what the competition machine has.
        rows: hidden rows; FB3 has about 2,600.
        keep: a new folder that keeps inputs and outputs; none: a temporary one.

    Raises:
        Fb3Error: the bundle or the data cannot be read. What fails in the rehearsal itself stands in the report.
    """
    packed = verify_bundle(bundle)
    members = packed.members()
    report = Rehearsal()
    tools = _tools(report)
    report.versions = differing_versions(image)
    stage = Path(keep) if keep else Path(tempfile.mkdtemp(prefix="fb3-rehearsal-"))
    if stage.is_dir() and any(stage.iterdir()):
        raise Fb3Error(f"{stage}: not empty; choose another --keep")
    try:
        for name, places in MOUNTS.items():
            count = rows if name == "new" else min(rows, _GLANCE)
            say(f"rehearsal, {name} layout, {count} rows")
            competition = stage / f"competition-{name}"
            copies = write_hidden_test(Path(data), members[0], competition, count)
            variables = {} if name == "new" else _two_devices()
            result = _run(packed, competition, stage / name, places, image, tools, variables)
            _judge(name, result, packed, competition, stage / name / "working", copies, report)
    finally:
        if keep is None:
            shutil.rmtree(stage, ignore_errors=True)
    if "new" in report.layouts and report.layouts["new"]["flops"]:
        report.projection = _projection(report.layouts["new"], members)
        if report.projection["share_t4"] > 1:
            report.failures.append("by its FLOPs it would exceed the limit on a T4: take fewer folds or smaller models")
    return report


def write_hidden_test(data: Path, member: Member, out: Path, rows: int, seed: int = 0) -> dict[str, str]:
    """Makes test.csv and sample_submission.csv in `out`: real lengths, odd essays, copies, and ids in two orders.

    Args:
        data: the folder with train.csv.
        member: its recipe names the columns.
        out: the folder to make.
        rows: essays.
        seed: of the draw.

    Returns:
        For each id whose essay is a copy of an earlier one, the id of that.
    """
    settings = member.recipe.data
    train = read_table(data / "train.csv", settings.text_columns())
    texts = train[settings.text_column]
    rng = np.random.default_rng(seed)
    odd = list({**ODD, "longest": " ".join([max(texts, key=len)] * 5)}.values())[:rows]
    drawn = texts.iloc[rng.integers(0, len(texts), rows - len(odd))].tolist()
    for copy in range(min(_COPIES, len(drawn) // 2)):
        drawn[-1 - copy] = drawn[copy]
    essays = pd.Series([*odd, *drawn]).sample(frac=1, random_state=seed).tolist()
    ids = [f"{number:012X}" for number in rng.choice(2**48, rows, replace=False)]
    others = {column: rng.choice(train[column], rows) for column in settings.text.columns()}
    test = pd.DataFrame({settings.id_column: ids, **others, settings.text_column: essays})
    write_csv(test, out / "test.csv")
    sample = test[[settings.id_column]].sample(frac=1, random_state=seed + 1)
    middle = (member.recipe.task.minimum + member.recipe.task.maximum) / 2
    write_csv(sample.assign(**dict.fromkeys(settings.target_columns, middle)), out / "sample_submission.csv")
    first: dict[str, str] = {}
    return {i: first[e] for i, e in zip(ids, essays, strict=True) if first.setdefault(e, i) != i}


def _tools(report: Rehearsal) -> list[str] | None:
    """The command prefix that gives a process network and mounts of its own; none where the system forbids it."""
    for prefix in (["unshare", "-rmn"], ["unshare", "-mn"]):
        try:
            with tempfile.TemporaryDirectory() as folder:
                program = "import sys; from fb3.stage import bind_read_only; bind_read_only(*sys.argv[1:])"
                command = [*prefix, sys.executable, "-c", program, folder, folder]
                if not subprocess.run(command, capture_output=True, cwd=Path(__file__).parent.parent).returncode:
                    return prefix
        except OSError:
            continue
    report.notes.append(
        "weaker: no namespaces here, so sockets are blocked inside the process only and inputs can be written"
    )
    return None


def _two_devices() -> dict[str, str]:
    """Lets the second run share the essays between two processes, as the competition's two GPUs will."""
    return {} if len(pick_devices()) > 1 else {"FB3_DEVICE": f"{pick_device()},{pick_device()}"}


def _run(
    packed: Bundle,
    competition: Path,
    stage: Path,
    places: tuple[str, str],
    image: Image,
    tools: list[str] | None,
    variables: dict[str, str],
) -> dict[str, Any]:
    """One notebook run; its result with the guard's log and what the stage printed."""
    inputs, working, guard, home = (stage / name for name in ("input", "working", "guard", "home"))
    for folder in (working, guard, home):
        folder.mkdir(parents=True)
    mounts = []
    for source, place in zip((packed.path.resolve(), competition.resolve()), places, strict=True):
        target = inputs / place
        if tools:
            target.mkdir(parents=True)
            mounts.append([str(source), str(target.resolve())])
        else:
            shutil.copytree(source, target)
    log = guard / "refused.txt"
    shutil.copyfile(Path(__file__).with_name("guard.py"), guard / "sitecustomize.py")
    settings = {
        "modules": importable(image),
        "bundle": str((inputs / places[0]).resolve()),
        "log": str(log.resolve()),
        "sockets": tools is None,
    }
    write_json(settings, guard / "settings.json")
    env = {
        "PYTHONPATH": str(guard.resolve()),
        "FB3_GUARD": str((guard / "settings.json").resolve()),
        "FB3_INPUT": str(inputs.resolve()),
        "HOME": str(home.resolve()),
        **RERUN_VARIABLES,
        **variables,
    }
    spec = {
        "notebook": str(find_notebook("inference")),
        "working": str(working.resolve()),
        "env": env,
        "keep": list(_KEPT),
        "mounts": mounts,
        "result": str((stage / "result.json").resolve()),
    }
    write_json(spec, stage / "spec.json")
    command = [*(tools or []), sys.executable, "-m", "fb3.stage", str((stage / "spec.json").resolve())]
    done = subprocess.run(command, cwd=Path(__file__).parent.parent, capture_output=True, text=True, env=os.environ)
    if done.returncode:
        return {"error": f"the stage itself failed: {done.stderr.strip()[-1500:]}", "seconds": 0.0}
    refused = sorted(set(log.read_text(encoding="utf-8").split())) if log.is_file() else []
    return {**read_json(stage / "result.json"), "refused": refused}


def importable(image: Image) -> list[str]:
    """Top-level modules of what the image has, and of the notebook kernel, as far as they are installed here.

    What those need is allowed too: in the versions of this machine it may be something else than in the image's.
    """
    allowed = set(installed_closure(map(Requirement, [*image.packages, "ipykernel", "nbclient", "pip", "setuptools"])))
    modules = importlib.metadata.packages_distributions()
    return sorted(m for m, owners in modules.items() if any(canonicalize_name(owner) in allowed for owner in owners))


def _judge(
    name: str,
    result: dict[str, Any],
    packed: Bundle,
    competition: Path,
    working: Path,
    copies: dict[str, str],
    report: Rehearsal,
) -> None:
    """Puts what one run gave into the report."""
    where = f"{name} layout"
    if result["error"]:
        refused = f"; not importable there: {', '.join(result['refused'])}" if result.get("refused") else ""
        report.failures.append(f"{where}: {result['error']}{refused}")
    try:
        summary = read_json(working / "submission.report.json", {"folds": list, "phases": dict, "flops": dict})
        if summary["error"]:
            report.failures.append(f"{where}: inference failed ({summary['error']}); the training means were kept")
        for fold in summary["folds"]:
            if fold["status"] != "used":
                report.failures.append(f"{where}: {fold['fold']} {fold['status']}: {fold['reason']}")
        _check_submission(packed.members()[0], competition, working / "submission.csv", copies)
    except (Fb3Error, KeyError) as error:
        report.failures.append(f"{where}: {error}")
        return
    report.layouts[name] = {
        "rows": summary["rows"],
        "phases": summary["phases"],
        "seconds": result["seconds"],
        "peak_memory": summary["peak_memory"],
        "refused": result.get("refused", []),
        "flops": summary["flops"],
    }


def _check_submission(member: Member, competition: Path, path: Path, copies: dict[str, str]) -> None:
    """As the competition will: ids, columns, range; and equal scores for equal essays.

    Raises:
        Fb3Error: what is wrong with it.
    """
    settings, task = member.recipe.data, member.recipe.task
    columns = list(settings.target_columns)
    written = read_table(path, [settings.id_column, *columns])
    sample = read_table(competition / "sample_submission.csv", [settings.id_column])
    check_form(written[settings.id_column], sample, columns, str(path))
    if written[settings.id_column].tolist() != sample[settings.id_column].tolist():
        raise Fb3Error(f"{path}: its rows are in another order than the sample submission's")
    try:
        written[columns] = written[columns].astype(float)
    except ValueError as error:
        raise Fb3Error(f"{path}: {error}") from None
    check_values(written[[settings.id_column, *columns]], task.minimum, task.maximum)
    values = written.set_index(settings.id_column)[columns]
    if copies:
        apart = np.abs(values.loc[list(copies)].to_numpy() - values.loc[list(copies.values())].to_numpy()).max(1)
        if apart.max() > _SAME:
            worst = list(copies)[int(apart.argmax())]
            raise Fb3Error(
                f"{path}: {worst} and {copies[worst]} are the same essay, their scores differ by {apart.max():.3f}; "
                "are rows in another order than their ids?"
            )


def _projection(layout: dict[str, Any], members: list[Member]) -> dict[str, float]:
    flops = sum(len(member.folds) * layout["flops"][member.name] for member in members)
    limit = min(m.recipe.predict.limit_hours for m in members)
    start = layout["phases"]["tokens"]
    return {
        "rows": layout["rows"],
        "here": layout["seconds"],
        "t4": round(start + flops / T4_FLOPS, 1),
        "share_t4": (start + flops / T4_FLOPS) / (limit * 3600),
        "share_here": layout["seconds"] / (limit * 3600),
        "limit_hours": limit,
    }


def as_json(report: Rehearsal) -> str:
    """For a program."""
    return json.dumps({"passed": report.passed, **asdict(report)}, indent=1, ensure_ascii=False)
