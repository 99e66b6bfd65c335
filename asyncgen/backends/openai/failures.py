"""Why a try has no answer, and what follows from it: from a status or an exception to a decision. Does nothing itself.

It ends the ``run`` where nobody else would fare better (a wrong key, no such model), the ``prompt`` where the server
does not take that and would not take it again; or it is tried ``again``: what may be the prompt's own fault counts,
what is the server's does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from time import time
from typing import Literal

__all__ = ["Failure", "TryFailed", "away", "cut", "invalid", "of_status", "plain", "retry_after", "too_late"]

_SAID = 300
"""Characters of a server's own message that are kept."""
_LOOKED_AT = 65_536
_ELSEWHERE = (404, 405, 410)
_COMES_AGAIN = (408, 409, 425, 429)


@dataclass(frozen=True, slots=True)
class Failure:
    """See the module."""

    ends: Literal["run", "prompt", "again"]
    message: str
    hint: str | None = None
    counts: bool = False
    """Whether it counts among the ``max_retries`` of the prompt."""
    overload: bool = False
    """Whether the server may have had too much to do."""
    wait: float = 0.0
    """Seconds that the server asks everybody to wait."""
    alive: bool = False
    """Whether the server is there and says nothing bad of itself."""
    reached: bool = True
    """Whether there was a connection."""
    alone: bool = False
    """Whether it may be the prompt alone that is not let in, though it would end the run."""
    let_in: bool = True
    """Whether the key, or having none, was good enough."""


class TryFailed(Exception):
    """A try has no answer. Raised where no other exception is handled: what is in those may hold a key."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


def of_status(
    status: int, body: str, headers: Mapping[str, str], *, has_key: bool, hide: Callable[[str], str] = str
) -> Failure:
    """What an answer with a status other than 200 means. The names of ``headers`` are lower case; ``hide`` takes out of
    the server's words what nobody may see.
    """
    said, code = _told(hide(body)[:_LOOKED_AT], headers)
    named = _named(status)
    said = "" if f"({said})" in named else _shortened(hide(said))  # Starlette's "Not Found", say
    message = f"{named}{said}"
    alive = status < 500 or status == 501
    if 300 <= status < 400:
        where = _shortened(hide(plain(headers.get("location", "elsewhere"))))
        return Failure("run", f"{message}, to{where}", hint="set backend.base_url to where the server is", alive=alive)
    if status == 402 or code == "insufficient_quota":
        return Failure("run", message, hint="look at what the account has left", alive=alive, let_in=False)
    if status in (401, 403):
        hint = (
            "look at the key, and what it may do" if has_key else "set backend.api_key_env: the variable with the key"
        )
        return Failure("run", message, hint=hint, alive=alive, let_in=False, alone=status == 403)
    if status in _ELSEWHERE:
        hint = "look at backend.base_url (it often ends with /v1) and model_name"
        return Failure("run", message, hint=hint, alive=alive)
    if status < 200 or status >= 500 or status in _COMES_AGAIN:
        busy = status in (429, 503)
        overload = busy or status in (408, 504)
        wait = retry_after(headers, time())
        return Failure("again", message, counts=not busy, overload=overload, wait=wait, alive=alive)
    return Failure("prompt", message, alive=alive)


def away(what: str) -> Failure:
    """No connection."""
    if "WRONG_VERSION_NUMBER" in what:
        hint = "whoever listens there speaks http, and not https"
    else:
        hint = "is the server running, and is backend.base_url where it is? the same run goes on when it can be reached"
    return Failure("again", f"no connection: {what}", hint=hint, overload=True, reached=False)


def cut(what: str) -> Failure:
    """A connection that ended before the answer did."""
    return Failure("again", f"the answer was cut off: {what}", counts=True, overload=True)


def too_late(seconds: float) -> Failure:
    """No answer in time."""
    return Failure("again", f"no answer within {seconds:g} s", counts=True, overload=True, reached=False)


def invalid(what: str) -> Failure:
    """An answer that is none."""
    return Failure("again", f"the answer means nothing: {what}", counts=True)


def retry_after(headers: Mapping[str, str], now: float) -> float:
    """Seconds that the header of this name asks for, which has seconds or a date; 0 for none, and for nonsense."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value, re.ASCII):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
    except (ValueError, OverflowError, IndexError, TypeError):
        return 0.0


def _named(status: int) -> str:
    try:
        return f"status {status} ({HTTPStatus(status).phrase})"
    except ValueError:
        return f"status {status}"


def _told(body: str, headers: Mapping[str, str]) -> tuple[str, str]:
    """The server's own words, as servers put them in several ways, and its code for the error."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        text = "" if "html" in headers.get("content-type", "") or body.lstrip()[:1] == "<" else body
        return plain(text), ""
    error = value.get("error", value) if isinstance(value, dict) else value
    if not isinstance(error, dict):
        return plain(error), ""
    said = next((error[name] for name in ("message", "detail", "error") if error.get(name)), "")
    return plain(said), str(error.get("code") or error.get("type") or "")


def plain(value: object) -> str:
    """What somebody else says, on one line and without control characters."""
    text = value if isinstance(value, str) else json.dumps(value)
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def _shortened(text: str) -> str:
    return f": {text[: _SAID - 3]}..." if len(text) > _SAID else f": {text}" if text else ""
