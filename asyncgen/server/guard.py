"""Who may come in: looked at before anything of a request is read.

Without a key the server listens to this machine alone, but so do web pages that a person on this machine has open: a
name of their own that leads to 127.0.0.1 ("DNS rebinding") makes a browser send their requests here. Such requests say
in ``Host`` which name they came by, so then it has to be one of this machine's. A page of another origin that knows the
port cannot send JSON without asking first, and nobody answers that it may.
"""

from __future__ import annotations

import hmac
import re

from starlette.types import ASGIApp, Receive, Scope, Send

from asyncgen.config import is_loopback
from asyncgen.server.refusals import Refusal
from asyncgen.server.replies import refused

__all__ = ["Guard"]

OPEN = frozenset({"/health"})
"""What needs no key."""

_HOST = re.compile(r"(?P<name>\[[^\]]*\]|[^:]*)(:\d*)?")


class Guard:
    """Middleware: asks for ``key`` where there is one, else for a name of this machine."""

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            await refused(refusal)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = dict(scope["headers"])  # of several, the last
        if self._key is None:
            host = headers.get(b"host", b"localhost").decode("latin-1").strip().lower()
            found = _HOST.fullmatch(host)
            if found and is_loopback(found["name"]):
                return None
            return Refusal(
                403,
                "host_not_allowed",
                f"the request came by the name {host[:200]!r}; a server without a key answers to localhost only",
            )
        if scope["path"] in OPEN:
            return None
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), self._key):
            return None
        return Refusal(
            401,
            "invalid_api_key",
            f"{'the key is another' if given else 'no key found'}; expected the header: Authorization: Bearer KEY",
            headers={"WWW-Authenticate": "Bearer"},
        )
