"""Kaggle's own client (2.2), with its errors in one line. It is imported late, because importing it authenticates."""

import io
import os
import re
import time
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TypeVar

from fb3.errors import Fb3Error
from fb3.system.kaggle import NO_CREDENTIALS, SECRET_VARIABLES

T = TypeVar("T")
_BUSY = {408, 429, 500, 502, 503, 504}


def open_client() -> Any:
    """Kaggle's client, authenticated, changed to raise where it could not upload a file.

    Raises:
        Fb3Error: the client is not installed, or has no credentials.
    """
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # without credentials it prints a page of help
        try:
            from kaggle.api.kaggle_api_extended import KaggleApi
        except ImportError as error:
            raise Fb3Error(f'{error}; pip install "fb3[upload]", or pip install kaggle six') from None
        except SystemExit:
            raise Fb3Error(NO_CREDENTIALS) from None

        class Client(KaggleApi):
            def _upload_blob(self, path: str, *arguments: Any, **keywords: Any) -> Any:
                """The uploaded file's token; the caller up to 2.2.4 skips a file without one, later it raises."""
                token = super()._upload_blob(path, *arguments, **keywords)
                if token is None:
                    # The client would try to resume an upload that the server has forgotten, for days: start it anew.
                    _discard_failed_upload(arguments)
                    token = super()._upload_blob(path, *arguments, **keywords)
                if token is None:
                    raise Fb3Error(f"{Path(path).name} could not be uploaded, so nothing was created; try again")
                return token

        client = Client()
        try:
            client.authenticate()
        except (SystemExit, OSError, ValueError):
            raise Fb3Error(NO_CREDENTIALS) from None
    return client


def _discard_failed_upload(arguments: tuple[Any, ...]) -> None:
    """Removes the client's record of the upload that failed last."""
    for context in arguments:
        if uploads := getattr(context, "_file_uploads", None):
            uploads.pop().cleanup()


def retry_while_busy(call: Callable[[], T], what: str, ends: float, poll: float, also: Container[int] = ()) -> T:
    """Repeats a call that only reads while Kaggle is busy or the connection is down; returns its answer.

    Args:
        call: the call.
        what: names it in the error.
        ends: the time.monotonic() at which to give up.
        poll: seconds between two tries.
        also: further HTTP status codes to retry on.
    """
    while True:
        with plain_errors(what):
            try:
                return call()
            except Exception as error:
                code = status_code(error)
                transient = code in _BUSY or code in also or (code is None and isinstance(error, OSError))
                if not transient or time.monotonic() > ends:
                    raise
        time.sleep(poll)


@contextmanager
def plain_errors(what: str) -> Iterator[None]:
    """Turns the client's errors into one line without credentials, and keeps its output off the screen."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    except Fb3Error as error:
        raise Fb3Error(redacted(f"{what}: {error}{_last_printed(printed)}")) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the client ends the process on some errors
        code = status_code(error)
        mend = _MENDS.get(code, "try again; a broken upload goes on where it broke off") if code else "try again"
        raise Fb3Error(redacted(f"{what} failed: {error}{_last_printed(printed)}; {mend}")) from None


_MENDS = {
    401: NO_CREDENTIALS,
    403: "is the account's phone verified, are the competition's rules accepted, is the name yours?",
    404: "there is nothing of that name",
    429: "Kaggle asks to slow down: wait some minutes",
}


def _last_printed(printed: io.StringIO) -> str:
    lines = [line.strip() for line in printed.getvalue().splitlines() if line.strip()]
    return f" ({'; '.join(lines[-2:])})" if lines else ""


def status_code(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def redacted(text: str) -> str:
    """A text without the values of credentials and without the queries of URLs, which hold upload tokens."""
    for name in SECRET_VARIABLES:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?***", text)


def check_answer(answer: Any, what: str) -> None:
    """Raises where the client's answer names an error, because the client itself returns normally then."""
    if answer is None:
        raise Fb3Error(f"{what}, without saying why")
    error, status = getattr(answer, "error", None), str(getattr(answer, "status", "ok") or "ok").lower()
    if error or status != "ok":
        raise Fb3Error(redacted(f"{what}: {error or status}"))
