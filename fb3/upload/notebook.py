"""Pushes the inference notebook to Kaggle, and submits its output to the competition."""

import json
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from fb3.bundles.kaggle_names import check_reference
from fb3.errors import Fb3Error
from fb3.system.files import write_json
from fb3.system.progress import say
from fb3.upload.client import check_answer, open_client, plain_errors, retry_while_busy


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
        kernel: the notebook's name on Kaggle, owner/slug.
        dataset: the name of the bundle's data set, owner/slug.
        competition: the competition's slug.
        pinning: the image that the notebook runs on, original or latest.
        title: the notebook's title; None: made from the slug, which Kaggle demands to match.

    Returns:
        The new version's number.

    Raises:
        Fb3Error: a name that Kaggle refuses, no credentials, or a source that it cannot attach.
    """
    metadata = kernel_metadata(notebook.name, kernel, dataset, competition, pinning, title)
    api = open_client()
    with plain_errors(f"status of {dataset}"):
        status = api.dataset_status(dataset)
    if status != "ready":
        raise Fb3Error(f"{dataset}: is not ready (status {status}), so its old version would be mounted; wait for it")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copyfile(notebook, Path(folder) / notebook.name)
        write_json(metadata, Path(folder) / "kernel-metadata.json")
        with plain_errors(f"push of {kernel}"):
            answer = api.kernels_push(folder)
    check_answer(answer, f"{kernel}: Kaggle refused the notebook")
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
    slug = check_reference(kernel, "OWNER/SLUG")
    check_reference(dataset, "--dataset")
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
    competition: str | None,
    *,
    version: int | None = None,
    message: str = "",
    file: str = "submission.csv",
    wait_seconds: float = 9 * 3600.0,
    poll_seconds: float = 20.0,
) -> str:
    """Waits until a notebook has run, shows its status and the end of its log, and submits its version.

    Args:
        kernel: the notebook's name on Kaggle, owner/slug.
        competition: the competition's slug; None: the one that is attached to the notebook.
        version: the notebook's version, which must be its latest; None: the latest.
        message: describes the submission.
        file: the file that the notebook wrote.
        wait_seconds: longest wait for the notebook to end.
        poll_seconds: time between two looks at its status.

    Returns:
        Kaggle's answer.

    Raises:
        Fb3Error: the notebook failed or did not end in time, or Kaggle refused the submission.
    """
    api = open_client()
    ends = time.monotonic() + wait_seconds
    metadata = retry_while_busy(lambda: _metadata(api, kernel), f"look at {kernel}", ends, poll_seconds)
    latest = int(metadata.current_version_number)
    competition = competition or _attached(metadata, kernel)
    if version is not None and version != latest:
        raise Fb3Error(f"{kernel}: version {version} is not its latest, {latest}; Kaggle tells the status of that only")
    status = _wait_complete(api, kernel, ends, poll_seconds)
    tail = log_tail(retry_while_busy(lambda: api.kernels_logs(kernel), f"log of {kernel}", ends, poll_seconds))
    say(f"{kernel}: {status}\n{tail}")
    if status != "complete":
        raise Fb3Error(f"{kernel}: ended with status {status}; nothing was submitted, its log's end stands above")
    with plain_errors(f"submission of {kernel} to {competition}"):
        answer = api.competition_submit_code(file, message, competition, kernel, latest, quiet=True)
    return str(answer.message)


def _metadata(api: Any, kernel: str) -> Any:
    """The notebook's metadata, as Kaggle's client gives it."""
    from kagglesdk.kernels.types.kernels_api_service import ApiGetKernelRequest

    request = ApiGetKernelRequest()
    request.user_name, request.kernel_slug = kernel.split("/")
    with api.build_kaggle_client() as client:
        return client.kernels.kernels_api_client.get_kernel(request).metadata


def _attached(metadata: Any, kernel: str) -> str:
    """The one competition among the notebook's inputs."""
    attached = list(metadata.competition_data_sources or [])
    if len(attached) != 1:
        raise Fb3Error(f"{kernel}: has {attached or 'no competition'} attached; say which with --competition NAME")
    return attached[0]


def _wait_complete(api: Any, kernel: str, ends: float, poll: float) -> str:
    shown = ""
    while True:
        answer = retry_while_busy(lambda: api.kernels_status(kernel), f"status of {kernel}", ends, poll)
        status = getattr(answer.status, "name", str(answer.status)).lower()
        if status not in {"queued", "running", "new_script"}:
            return status
        if status != shown:
            say(f"{kernel}: {status}")
            shown = status
        if time.monotonic() > ends:
            raise Fb3Error(f"{kernel}: still {status} after all the time given; nothing was submitted")
        time.sleep(poll)


def log_tail(log: str, lines: int = 20) -> str:
    """The last lines of a notebook's log, which Kaggle gives as pieces of output in JSON."""
    try:
        text = "".join(piece.get("data", "") for piece in json.loads(log))
    except (ValueError, AttributeError, TypeError):
        text = log
    return "\n".join(text.strip().splitlines()[-lines:])
