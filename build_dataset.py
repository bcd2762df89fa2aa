#!/usr/bin/env python3
"""Packs run folders, fb3's source and wheels into one folder to upload as a Kaggle data set.

python build_dataset.py runs/minilm --out bundle --id your-name/fb3-minilm --title "FB3 MiniLM"
python build_dataset.py --source-only --out source --id your-name/fb3-source    # to train on Kaggle without internet
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from fb3.bundles.packed_wheels import packed_wheels
from fb3.bundles.packing import PackingStep, write_bundle
from fb3.errors import Fb3Error
from fb3.system.progress import as_command, escape_output
from fb3.upload.dataset import upload_bundle


def main() -> None:
    """Reads the arguments, packs the bundle, and says what it holds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "runs", nargs="*", type=Path, metavar="RUN", help="run folder of `fb3 train`, or the folder of `fb3 ensemble`"
    )
    parser.add_argument(
        "--source-only", action="store_true", help="no run: source and wheels, for notebooks/train.ipynb offline"
    )
    parser.add_argument("--out", required=True, type=Path, metavar="BUNDLE", help="the folder to write")
    parser.add_argument("--id", metavar="OWNER/SLUG", help="name of the data set")
    parser.add_argument("--title", help="title of the data set, 6-50 characters; default: the slug")
    parser.add_argument("--weights", choices=["fp32", "fp16"], default="fp32", help="fp16 halves the size")
    parser.add_argument(
        "--int8", action="store_true", help="let CPUs compute in int8, where the CV stays within 0.0005"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--wheels", type=Path, metavar="DIR", help="take the wheels from this folder, not from PyPI")
    source.add_argument("--no-wheels", action="store_true", help="pack no wheels; inference needs none")
    proof = parser.add_mutually_exclusive_group()
    proof.add_argument("--data", type=Path, metavar="DIR", help="folder of the runs' essays, if they have moved")
    proof.add_argument("--no-parity", action="store_true", help="do not replay out-of-fold predictions before packing")
    kaggle = parser.add_argument_group("upload", "to Kaggle, with its own client (pip install kaggle six)")
    kaggle.add_argument("--upload", action="store_true", help="create the data set, or a new version of it")
    kaggle.add_argument("--message", default="", help="describes the new version")
    kaggle.add_argument("--public", action="store_true", help="make a new data set public")
    kaggle.add_argument("--dry-run", action="store_true", help="list the files to upload, and send nothing")
    escape_output()
    arguments = parser.parse_args()
    if not arguments.runs and not arguments.source_only:
        raise Fb3Error("no run folder to pack; give one, or --source-only")
    if arguments.source_only and (given := _of_runs(arguments)):
        raise Fb3Error(f"--source-only packs no run; leave out {', '.join(given)}")
    bundle = write_bundle(
        arguments.runs,
        arguments.out,
        id=arguments.id,
        title=arguments.title,
        weights=arguments.weights,
        wheels=packed_wheels(arguments.runs, arguments.wheels, arguments.no_wheels),
        int8=later("fb3.bundles.int8_scales", "calibrate", arguments.data) if arguments.int8 else None,
        check=None
        if arguments.no_parity or arguments.source_only
        else later("fb3.bundles.parity", "replay", arguments.data),
        source_only=arguments.source_only,
    )
    size = sum(entry["size"] for entry in bundle.manifest["files"].values())
    folds = sum(len(run["folds"]) for run in bundle.manifest["runs"])
    content = "source and wheels" if arguments.source_only else f"{folds} folds of {len(bundle.manifest['runs'])} runs"
    print(f"{bundle.path}: {content}, {size / 1e6:.1f} MB")
    if not arguments.id:
        print(f"set your Kaggle name in {bundle.path / 'dataset-metadata.json'}, or pack with --id owner/slug")
    rehearsal = f"{as_command(['fb3', 'rehearse', bundle.path])} --data DIR"
    print(f"next: {'attach it and the competition to notebooks/train.ipynb' if arguments.source_only else rehearsal}")
    if arguments.upload or arguments.dry_run:
        upload_bundle(bundle.path, message=arguments.message, public=arguments.public, dry_run=arguments.dry_run)


def later(module: str, name: str, data: Path | None) -> PackingStep:
    """A packing step from a module that imports torch; the import waits until the runs are known to be whole."""
    return lambda members, packed: getattr(import_module(module), name)(data)(members, packed)


def _of_runs(arguments: argparse.Namespace) -> list[str]:
    """The given arguments that concern runs or their weights."""
    given = {
        "RUN": arguments.runs,
        "--weights": arguments.weights != "fp32",
        "--int8": arguments.int8,
        "--data": arguments.data,
        "--no-parity": arguments.no_parity,
    }
    return [name for name, value in given.items() if value]


if __name__ == "__main__":
    try:
        main()
    except (Fb3Error, OSError) as error:
        sys.exit(f"error: {error}")
