"""Kaggle's own client (2.2), imported only when needed, because importing it authenticates; its errors made plain."""

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
            raise Fb3Error(NO_CREDENTIALS) from None

        class Client(KaggleApi):
            def _upload_blob(self, path: str, *arguments: Any, **keywords: Any) -> Any:
                """The blob's token: up to 2.2.4 the caller passes over a file without one, from 2.2.5 on it raises."""
                token = super()._upload_blob(path, *arguments, **keywords)
                if token is None:
                    # The record of an upload that the server no longer knows would fail for days: begin anew, once.
                    _forget(arguments)
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


def _forget(arguments: tuple[Any, ...]) -> None:
    """Removes the client's record of the upload that failed last."""
    for context in arguments:
        if uploads := getattr(context, "_file_uploads", None):
            uploads.pop().cleanup()


def retry_while_busy(call: Callable[[], T], what: str, ends: float, poll: float, also: Container[int] = ()) -> T:
    """The answer of a call that only looks, asked again while Kaggle is busy or the line is down.

    Args:
        call: what to ask.
        what: named in the error.
        ends: when to give up, by time.monotonic().
        poll: seconds between two tries.
        also: further statuses that are no answer yet.
    """
    while True:
        with told(what):
            try:
                return call()
            except Exception as error:
                code = status_code(error)
                transient = code in _BUSY or code in also or (code is None and isinstance(error, OSError))
                if not transient or time.monotonic() > ends:
                    raise
        time.sleep(poll)


@contextmanager
def told(what: str) -> Iterator[None]:
    """The client's errors in one line, without credentials and without what it prints."""
    printed = io.StringIO()
    try:
        with redirect_stdout(printed):
            yield
    except Fb3Error as error:
        raise Fb3Error(clean(f"{what}: {error}{_said(printed)}")) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the client ends the process on some errors
        code = status_code(error)
        mend = _MENDS.get(code, "try again; a broken upload goes on where it broke off") if code else "try again"
        raise Fb3Error(clean(f"{what} failed: {error}{_said(printed)}; {mend}")) from None


_MENDS = {
    401: NO_CREDENTIALS,
    403: "is the account's phone verified, are the competition's rules accepted, is the name yours?",
    404: "there is nothing of that name",
    429: "Kaggle asks to slow down: wait some minutes",
}


def _said(printed: io.StringIO) -> str:
    lines = [line.strip() for line in printed.getvalue().splitlines() if line.strip()]
    return f" ({'; '.join(lines[-2:])})" if lines else ""


def status_code(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)


def clean(text: str) -> str:
    """Without the values of credentials, and without the queries of addresses, which hold upload tokens."""
    for name in SECRET_VARIABLES:
        if value := os.environ.get(name):
            text = text.replace(value, "***")
    return re.sub(r"(https?://[^\s?]+)\?\S+", r"\1?***", text)


def refuse(answer: Any, what: str) -> None:
    """Raises where the client's answer names an error: it does so with exit status 0."""
    if answer is None:
        raise Fb3Error(f"{what}, without saying why")
    error, status = getattr(answer, "error", None), str(getattr(answer, "status", "ok") or "ok").lower()
    if error or status != "ok":
        raise Fb3Error(clean(f"{what}: {error or status}"))
