"""Server-sent events, from bytes as they come: the ``data`` of each (https://html.spec.whatwg.org/#server-sent-events)."""

from __future__ import annotations

__all__ = ["Events"]


class Events:
    """A line ends with a line feed, and a carriage return before it is no part of it; what else may end one is text."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data: list[bytes] = []
        self.ended = False
        """Whether the server said that there is no more."""

    def add(self, chunk: bytes) -> list[bytes]:
        """The events that are whole with this."""
        *lines, rest = chunk.split(b"\n")
        found: list[bytes] = []
        for line in lines:
            self._line += line
            found += self._take(bytes(self._line).removesuffix(b"\r"))
            self._line.clear()
        self._line += rest
        return found

    def rest(self) -> list[bytes]:
        """The event that no empty line ended, if there is one."""
        return self.add(b"\n\n")

    def _take(self, line: bytes) -> list[bytes]:
        if self.ended:
            return []
        if line.startswith(b"data:"):
            self._data.append(line[5:].removeprefix(b" "))
        elif not line and self._data:
            event = b"\n".join(self._data)
            self._data.clear()
            self.ended = event.strip() == b"[DONE]"
            return [] if self.ended else [event]
        return []
