"""Upload: a bundle to a data set, the inference notebook to a kernel, its version to the competition.

The only module that talks to Kaggle, through its own client (2.2), imported when it is needed: importing it
authenticates. The client drops a file whose upload failed, creates the data set without it and reports success; here
such a file stops the upload, and what was created is compared with the manifest.
"""

import io
import json
import os
import re
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from fb3.bundle import verify_bundle
from fb3.errors import Fb3Error
from fb3.files import read_json, sha256, write_json
from fb3.layout import MANIFEST, METADATA
from fb3.packing import dataset_metadata
from fb3.progress import say

_TOP_LEVEL = 50  # files and folders that a data set may have at its top
_PLACEHOLDER = "your-name"
_SECRETS = ("KAGGLE_API_TOKEN", "KAGGLE_KEY", "KAGGLE_API_V1_TOKEN")
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of the zips' entries, so that a second try sends the same bytes
CREDENTIALS = (
    "Kaggle's client found no credentials: make a token at kaggle.com/settings and put it into ~/.kaggle/access_token "
    "or KAGGLE_API_TOKEN"
)


# --- the data set ---


def upload_bundle(
    bundle: str | Path,
    *,
    message: str = "",
    public: bool = False,
    dry_run: bool = False,
    wait_seconds: float = 1800.0,
    poll_seconds: float = 5.0,
) -> str:
    """Creates the data set of a bundle, or a new version of it, and compares what was created with the manifest.

    A second call after a failure goes on where the first broke off.

    Args:
        bundle: the dataset folder; its dataset-metadata.json names the data set.
        message: of the new version.
        public: of a new data set.
        dry_run: say what would go, and send nothing.
        wait_seconds: for the data set to become ready.
        poll_seconds: between two looks at it.

    Returns:
        owner/slug.

    Raises:
        Fb3Error: a damaged bundle, a limit of Kaggle's, no credentials, a failed upload, a file that is missing from
            what was created.
    """
    packed = verify_bundle(bundle)
    settings = check_limits(packed.path)
    reference = settings["id"]
    wanted = {name: entry["size"] for name, entry in packed.manifest["files"].items() if name != METADATA}
    wanted[MANIFEST] = (packed.path / MANIFEST).stat().st_size
    if dry_run:
        for name, size in sorted(wanted.items()):
            say(f"{size:>12,}  {name}")
        say(f"would upload {len(wanted)} files, {sum(wanted.values()) / 1e6:.1f} MB, to {reference}; nothing was sent")
        return reference
    api = _client()
    before = _version(api, reference)
    stage = packed.path.with_name(f".{packed.path.name}.upload")
    _zip_folders(packed.path, stage)
    say(f"uploading {sum(wanted.values()) / 1e6:.1f} MB to {reference}, {'version' if before else 'data set'} new")
    with _told(f"upload of {packed.path} to {reference}"):
        if before is None:
            answer = api.dataset_create_new(str(stage), public=public, quiet=True)
        else:
            answer = api.dataset_create_version(str(stage), message or "new version", quiet=True)
    _refuse(answer, f"{reference}: Kaggle refused the data set")
    _wait_ready(api, reference, before, wait_seconds, poll_seconds)
    _compare(wanted, _listed(api, reference), reference)
    shutil.rmtree(stage)
    say(f"https://www.kaggle.com/datasets/{reference}: ready, all {len(wanted)} files are there")
    return reference


def check_limits(bundle: Path) -> dict[str, Any]:
    """The content of dataset-metadata.json, held against Kaggle's limits before the first byte goes.

    Raises:
        Fb3Error: the file is broken, names no owner, has not exactly one licence, breaks a limit of slug or title, or
            the bundle has too many entries at its top.
    """
    path = bundle / METADATA
    settings = read_json(path)
    if not isinstance(settings, dict) or not isinstance(settings.get("id"), str):
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


def _zip_folders(bundle: Path, stage: Path) -> None:
    """Each folder as NAME.zip, which Kaggle unpacks to NAME/, beside the plain files.

    The client takes an upload up again by path, size and time: so the place is always the same, and the time is made
    from the manifest's hash.
    """
    stage.mkdir(exist_ok=True)
    stamp = 10**9 + int(sha256(bundle / MANIFEST)[:7], 16)
    for entry in sorted(bundle.iterdir()):
        target = stage / (f"{entry.name}.zip" if entry.is_dir() else entry.name)
        if target.exists() and target.stat().st_mtime == stamp:
            continue
        if entry.is_dir():
            aside = target.with_suffix(".part")
            with zipfile.ZipFile(aside, "w", zipfile.ZIP_STORED) as archive:  # weights do not shrink
                for file in sorted(path for path in entry.rglob("*") if path.is_file()):
                    info = zipfile.ZipInfo(file.relative_to(entry).as_posix(), _EPOCH)
                    info.file_size = file.stat().st_size
                    with file.open("rb") as source, archive.open(info, "w") as sink:
                        shutil.copyfileobj(source, sink, 2**20)
            aside.replace(target)
        else:
            shutil.copyfile(entry, target)
        os.utime(target, (stamp, stamp))


def _version(api: Any, reference: str) -> int | None:
    """The data set's current version; none where there is no such data set."""
    with _told(f"look at {reference}"):
        try:
            return int(json.loads(api.dataset_status(reference, format="json"))["current_version_number"] or 0)
        except Exception as error:
            if _status_code(error) in {403, 404}:
                return None
            raise


def _wait_ready(api: Any, reference: str, before: int | None, seconds: float, poll: float) -> None:
    """Until the new version is ready: attached earlier, the old one would be mounted."""
    ends = time.monotonic() + seconds
    status = "unknown"
    while time.monotonic() < ends:
        with _told(f"status of {reference}"):
            try:
                found = json.loads(api.dataset_status(reference, format="json"))
            except Exception as error:
                if _status_code(error) not in {403, 404, 429, 500, 502, 503}:  # not there yet, or busy
                    raise
                found = {"status": "not there yet", "current_version_number": None}
        status = found["status"]
        if status == "ready" and (found["current_version_number"] or 0) > (before or 0):
            return
        if status in {"error", "failed", "deleted"}:
            raise Fb3Error(f"{reference}: Kaggle could not process it (status {status}); upload it again")
        time.sleep(poll)
    raise Fb3Error(f"{reference}: not ready after {seconds:.0f} s (status {status}); look at it on kaggle.com")


def _listed(api: Any, reference: str) -> dict[str, int]:
    """Sizes of the data set's files, by path."""
    files: dict[str, int] = {}
    page = None
    while True:
        with _told(f"list of {reference}"):
            answer = api.dataset_list_files(reference, page_token=page, page_size=200)
        files |= {file.name: int(file.total_bytes or 0) for file in answer.files}
        page = answer.next_page_token
        if not page:
            return files


def _compare(wanted: dict[str, int], have: dict[str, int], reference: str) -> None:
    missing = sorted(set(wanted) - set(have))
    other = sorted(name for name in set(wanted) & set(have) if wanted[name] != have[name])
    if missing or other:
        raise Fb3Error(
            f"{reference}: the new version is not the bundle: {len(missing)} files are missing {missing[:5]}, "
            f"{len(other)} have another size {other[:5]}; upload it again, and do not attach this version"
        )


# --- the notebook ---


def push_notebook(
    notebook: Path,
    kernel: str,
    *,
    dataset: str,
    competition: str,
    pinning: str = "original",
    title: str | None = None,
) -> int:
    """Pushes a notebook with internet off, two T4s, data set and competition attached; Kaggle then runs it.

    Args:
        notebook: the .ipynb.
        kernel: owner/slug.
        dataset: owner/slug of the bundle's data set.
        competition: its slug.
        pinning: original or latest image.
        title: none: made from the slug, as Kaggle wants it.

    Returns:
        The new version's number.

    Raises:
        Fb3Error: a name that Kaggle refuses, no credentials, or a source that it cannot attach.
    """
    metadata = kernel_metadata(notebook.name, kernel, dataset, competition, pinning, title)
    api = _client()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(notebook, Path(folder) / notebook.name)
        write_json(metadata, Path(folder) / "kernel-metadata.json")
        with _told(f"push of {kernel}"):
            answer = api.kernels_push(folder)
    _refuse(answer, f"{kernel}: Kaggle refused the notebook")
    for what in ("invalid_dataset_sources", "invalid_competition_sources"):
        if refused := getattr(answer, what, None):
            raise Fb3Error(f"{kernel}: pushed, but without {refused}: Kaggle knows no such {what.split('_')[1]}")
    return int(answer.version_number)


def kernel_metadata(
    file: str, kernel: str, dataset: str, competition: str, pinning: str, title: str | None
) -> dict[str, Any]:
    """The content of kernel-metadata.json.

    Raises:
        Fb3Error: an id that is not owner/slug, a title that does not give the slug, an unknown pinning.
    """
    for what, text in (("--id", kernel), ("--dataset", dataset)):
        if not re.fullmatch(r"[\w-]+/[a-z0-9-]+", text):
            raise Fb3Error(f"{what} {text}: want owner/slug, the slug of small letters, digits and hyphens")
    slug = kernel.split("/")[1]
    title = title or slug.replace("-", " ")
    if len(title) < 5 or "-".join(re.findall(r"[a-z0-9]+", title.lower())) != slug:
        raise Fb3Error(f"--title {title!r}: want five characters or more that give the slug {slug}")
    if pinning not in {"original", "latest"}:
        raise Fb3Error(f"--pinning {pinning}: want original or latest")
    return {
        "id": kernel,
        "title": title,
        "code_file": file,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": False,  # the client's default is on, which a code competition refuses
        "machine_shape": "NvidiaTeslaT4",
        "dataset_sources": [dataset],
        "competition_sources": [competition],
        "kernel_sources": [],
        "model_sources": [],
        "docker_image_pinning_type": pinning,
    }


def submit_notebook(
    kernel: str,
    competition: str,
    *,
    version: int | None = None,
    message: str = "",
    file: str = "submission.csv",
    wait_seconds: float = 9 * 3600.0,
    poll_seconds: float = 20.0,
) -> str:
    """Waits until a notebook has run, shows its status and the end of its log, and submits its version.

    Args:
        kernel: owner/slug.
        competition: its slug.
        version: of the notebook; none: the latest.
        message: of the submission.
        file: that the notebook wrote.
        wait_seconds: for the notebook to end.
        poll_seconds: between two looks at it.

    Returns:
        Kaggle's answer.

    Raises:
        Fb3Error: the notebook failed or did not end in time, or Kaggle refused the submission.
    """
    api = _client()
    status = _wait_complete(api, kernel, wait_seconds, poll_seconds)
    with _told(f"log of {kernel}"):
        tail = log_tail(api.kernels_logs(kernel))
    say(f"{kernel}: {status}\n{tail}")
    if status != "complete":
        raise Fb3Error(f"{kernel}: ended with status {status}; nothing was submitted, its log's end stands above")
    with _told(f"submission of {kernel} to {competition}"):
        answer = api.competition_submit_code(file, message, competition, kernel, version, quiet=True)
    return str(answer.message)


def _wait_complete(api: Any, kernel: str, seconds: float, poll: float) -> str:
    ends = time.monotonic() + seconds
    shown = ""
    while True:
        with _told(f"status of {kernel}"):
            answer = api.kernels_status(kernel)
        status = getattr(answer.status, "name", str(answer.status)).lower()
        if status not in {"queued", "running", "new_script"}:
            return status
        if status != shown:
            say(f"{kernel}: {status}")
            shown = status
        if time.monotonic() > ends:
            raise Fb3Error(f"{kernel}: still {status} after {seconds:.0f} s; nothing was submitted")
        time.sleep(poll)


def log_tail(log: str, lines: int = 20) -> str:
    """The last lines of a notebook's log, which comes as JSON pieces of output."""
    try:
        text = "".join(piece.get("data", "") for piece in json.loads(log))
    except (ValueError, AttributeError, TypeError):
        text = log
    return "\n".join(text.strip().splitlines()[-lines:])


# --- the client ---


def _client() -> Any:
    """Kaggle's client, authenticated, which does not pass over a file that it could not upload.

    Raises:
        Fb3Error: it is not installed, or has no credentials.
    """
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # it prints a page without credentials
        try:
            from kaggle.api.kaggle_api_extended import KaggleApi
        except ImportError as error:
            raise Fb3Error(f'{error}; pip install "fb3[upload]", or pip install kaggle six') from None
        except SystemExit:
            raise Fb3Error(CREDENTIALS) from None

        class Client(KaggleApi):
            def _upload_file(self, file_name: str, *arguments: Any, **keywords: Any) -> Any:
                done = super()._upload_file(file_name, *arguments, **keywords)
                if done is None:
                    raise Fb3Error(f"{file_name} could not be uploaded, so nothing was created; try again")
                return done

        client = Client()
        try:
            client.authenticate()
        except (SystemExit, OSError, ValueError):
            raise Fb3Error(CREDENTIALS) from None
    return client


@contextmanager
def _told(what: str) -> Iterator[None]:
    """The client's errors in one line, without credentials and without what it prints."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    except Fb3Error as error:
        raise Fb3Error(_clean(f"{what}: {error}{_said(printed)}")) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the client ends the process on some errors
        code = _status_code(error)
        mend = _MENDS.get(code, "try again; a broken upload goes on where it broke off") if code else "try again"
        raise Fb3Error(_clean(f"{what} failed: {error}{_said(printed)}; {mend}")) from None


_MENDS = {
    401: CREDENTIALS,
    403: "is the account's phone verified, are the competition's rules accepted, is the name yours?",
    404: "there is nothing of that name",
    429: "Kaggle asks to slow down: wait some minutes",
}


def _said(printed: io.StringIO) -> str:
    lines = [line.strip() for line in printed.getvalue().splitlines() if line.strip()]
    return f" ({'; '.join(lines[-2:])})" if lines else ""


def _status_code(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def _clean(text: str) -> str:
    """Without the values of credentials, and without the queries of addresses, which hold upload tokens."""
    for name in _SECRETS:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?***", text)


def _refuse(answer: Any, what: str) -> None:
    """Raises where the client's answer names an error: it does so with exit status 0."""
    if answer is None:
        raise Fb3Error(f"{what}, without saying why")
    error, status = getattr(answer, "error", None), str(getattr(answer, "status", "ok") or "ok").lower()
    if error or status != "ok":
        raise Fb3Error(_clean(f"{what}: {error or status}"))
