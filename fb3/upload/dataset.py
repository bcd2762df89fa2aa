"""Uploads a bundle as a Kaggle data set.

Kaggle's client drops a file whose upload failed, creates the data set without it and reports success. Here such a file
stops the upload, and the new data set is compared with the manifest.
"""

import json
import os
import shutil
import time
import zipfile
from functools import partial
from pathlib import Path
from typing import Any

from fb3.bundles.bundle import verify_bundle
from fb3.bundles.kaggle_names import check_file_names, dataset_metadata
from fb3.errors import Fb3Error
from fb3.system.file_names import MANIFEST, METADATA
from fb3.system.files import read_json, sha256
from fb3.system.progress import say
from fb3.upload.client import check_answer, open_client, plain_errors, retry_while_busy, status_code

_TOP_LEVEL = 50  # files and folders that a data set may have at its top
_PLACEHOLDER = "your-name"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # date of the zips' entries, so that a second try sends the same bytes


def upload_bundle(
    bundle: str | Path,
    *,
    message: str = "",
    public: bool = False,
    dry_run: bool = False,
    wait_seconds: float = 1800.0,
    poll_seconds: float = 5.0,
) -> str:
    """Creates a bundle's data set, or a new version of it, and compares it with the manifest.

    A second call after a failure resumes the upload.

    Args:
        bundle: the bundle's folder; its dataset-metadata.json names the data set.
        message: describes a new version.
        public: whether a new data set is public.
        dry_run: list the files, and send nothing.
        wait_seconds: longest wait for the data set to become ready.
        poll_seconds: time between two looks at its status.

    Returns:
        The data set's name, owner/slug.

    Raises:
        Fb3Error: a damaged bundle, a limit of Kaggle's, no credentials, a failed upload, a file that is missing from
            the new data set.
    """
    packed = verify_bundle(bundle)
    settings = check_limits(packed.path)
    reference = settings["id"]
    wanted = {name: entry["size"] for name, entry in packed.manifest["files"].items() if name != METADATA}
    check_file_names(wanted)
    wanted[MANIFEST] = (packed.path / MANIFEST).stat().st_size
    if dry_run:
        for name, size in sorted(wanted.items()):
            say(f"{size:>12,}  {name}")
        say(f"would upload {len(wanted)} files, {sum(wanted.values()) / 1e6:.1f} MB, to {reference}; nothing was sent")
        return reference
    api = open_client()
    before = _version(api, reference)
    folder = packed.path.with_name(f".{packed.path.name}.upload")
    _zip_folders(packed.path, folder, {*wanted, METADATA})
    say(f"uploading {sum(wanted.values()) / 1e6:.1f} MB to {reference}, {'version' if before else 'data set'} new")
    with plain_errors(f"upload of {packed.path} to {reference}"):
        if before is None:
            answer = api.dataset_create_new(str(folder), public=public, quiet=True)
        else:
            answer = api.dataset_create_version(str(folder), message or "new version", quiet=True)
    check_answer(answer, f"{reference}: Kaggle refused the data set")
    _wait_ready(api, reference, before, wait_seconds, poll_seconds)
    _compare(wanted, _listed(api, reference, wait_seconds, poll_seconds), reference)
    shutil.rmtree(folder)
    say(f"https://www.kaggle.com/datasets/{reference}: ready, all {len(wanted)} files are there")
    return reference


def check_limits(bundle: Path) -> dict[str, Any]:
    """Reads dataset-metadata.json and checks Kaggle's limits, before anything is sent.

    Raises:
        Fb3Error: the file is broken, names no owner, has not exactly one licence, or breaks a limit of slug or title;
            or the bundle has too many entries at its top.
    """
    path = bundle / METADATA
    settings = read_json(path)
    if not isinstance(settings.get("id"), str):
        raise Fb3Error(f"{path}: no id in it; pack with --id owner/slug")
    title = settings.get("title")
    dataset_metadata(settings["id"], title if isinstance(title, str) else "")
    if settings["id"].startswith(f"{_PLACEHOLDER}/"):
        raise Fb3Error(f"{path}: the id still begins with {_PLACEHOLDER}; pack with --id owner/slug")
    if not isinstance(settings.get("licenses"), list) or len(settings["licenses"]) != 1:
        raise Fb3Error(f'{path}: want exactly one licence, such as [{{"name": "other"}}]')
    top = [entry for entry in bundle.iterdir() if entry.name != METADATA]
    if len(top) > _TOP_LEVEL:
        raise Fb3Error(f"{bundle}: {len(top)} files and folders at its top, Kaggle takes {_TOP_LEVEL}")
    return settings


def _zip_folders(bundle: Path, folder: Path, names: set[str]) -> None:
    """Fills `folder`: each folder of the bundle as NAME.zip, which Kaggle unpacks to NAME/, and the files at its top.

    The client resumes an upload by the file's path, size and time. So `folder` is always the same, and the files' time
    is made from the manifest's hash. Files that are not in `names` are left out.
    """
    folder.mkdir(exist_ok=True)
    top = {name.split("/")[0] for name in names}
    listed = [entry for entry in sorted(bundle.iterdir()) if entry.name in top]
    entries = {f"{entry.name}.zip" if entry.is_dir() else entry.name: entry for entry in listed}
    for left in [path for path in folder.iterdir() if path.name not in entries]:
        left.unlink()  # from an earlier try with another bundle
    stamp = 10**9 + int(sha256(bundle / MANIFEST)[:7], 16)
    for name, entry in entries.items():
        target = folder / name
        if entry.is_dir() and target.exists() and target.stat().st_mtime == stamp:
            continue
        if entry.is_dir():
            aside = target.with_suffix(".part")
            with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:  # weights do not shrink
                for file in sorted(path for path in entry.rglob("*") if path.relative_to(bundle).as_posix() in names):
                    info = zipfile.ZipInfo(file.relative_to(entry).as_posix(), _EPOCH)
                    info.file_size = file.stat().st_size
                    with file.open("rb") as source, archive.open(info, "w") as sink:
                        shutil.copyfileobj(source, sink, 2**20)
            aside.replace(target)
        else:
            shutil.copyfile(entry, target)
        os.utime(target, (stamp, stamp))


def _version(api: Any, reference: str) -> int | None:
    """The data set's current version; None where there is no such data set."""
    with plain_errors(f"look at {reference}"):
        try:
            return int(json.loads(api.dataset_status(reference, format="json"))["current_version_number"] or 0)
        except Exception as error:
            if status_code(error) in {403, 404}:
                return None
            raise


def _wait_ready(api: Any, reference: str, before: int | None, seconds: float, poll: float) -> None:
    """Waits until the new version is ready; a notebook pushed earlier would get the old one."""
    ends = time.monotonic() + seconds
    status = "unknown"
    while time.monotonic() < ends:
        look = partial(api.dataset_status, reference, format="json")
        answer = retry_while_busy(look, f"status of {reference}", ends, poll, also={403, 404})  # not there yet
        with plain_errors(f"status of {reference}"):
            found = json.loads(answer)
            status = found["status"]
        if status == "ready" and (found.get("current_version_number") or 0) > (before or 0):
            return
        if status in {"error", "failed", "deleted"}:
            raise Fb3Error(f"{reference}: Kaggle could not process it (status {status}); upload it again")
        time.sleep(poll)
    raise Fb3Error(f"{reference}: not ready after {seconds:.0f} s (status {status}); look at it on kaggle.com")


def _listed(api: Any, reference: str, seconds: float, poll: float) -> dict[str, int]:
    """The sizes of the data set's files in bytes, by path."""
    files: dict[str, int] = {}
    page = None
    ends = time.monotonic() + seconds
    while True:
        look = partial(api.dataset_list_files, reference, page_token=page, page_size=200)
        answer = retry_while_busy(look, f"list of {reference}", ends, poll)
        files |= {file.name: int(file.total_bytes or 0) for file in answer.files}
        page = answer.next_page_token
        if not page:
            return files


def _compare(wanted: dict[str, int], have: dict[str, int], reference: str) -> None:
    if extra := sorted(set(have) - set(wanted)):
        say(f"WARNING: {reference} holds {len(extra)} files that are not in the manifest: {extra[:5]}")
    missing = sorted(set(wanted) - set(have))
    other = sorted(name for name in set(wanted) & set(have) if wanted[name] != have[name])
    if missing or other:
        raise Fb3Error(
            f"{reference}: the new version is not the bundle: {len(missing)} files are missing {missing[:5]}, "
            f"{len(other)} have another size {other[:5]}; upload it again, and do not attach this version"
        )
