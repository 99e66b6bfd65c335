"""What the configuration may say about ``asyncgen serve``: the section ``server``."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Annotated

from pydantic import Field, model_validator

from asyncgen.config_section import Section

__all__ = ["Server", "is_loopback"]


def is_loopback(host: str) -> bool:
    """Whether only programs on this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Server(Section):
    """How `asyncgen serve` answers other programs. Runs do not read it."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    """Address to listen at. Any other than this machine's own (`127.0.0.1`, `::1`, `localhost`) needs `api_key_env`."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8000
    """Port to listen at; 0 takes one that is free, and says which."""
    api_key_env: Annotated[str, Field(pattern="^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Name of the environment variable that holds the key which clients must send; null wants none."""
    model_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """What clients call the model; null is `model_name`, of a directory its last part."""
    max_stories: Annotated[int, Field(ge=1, le=1_000_000)] = 1024
    """Stories that may wait or run at once; who asks for more is told to come back (429)."""
    max_choices: Annotated[int, Field(ge=1, le=65_536)] = 128
    """Most that `n`, the answers to a prompt, may be, and most prompts of one request."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens that a story may be asked to have; null is what the model's context holds. A request that does not
    say gets `generation.max_new_tokens`, or fewer if fewer fit."""
    max_body_bytes: Annotated[int, Field(ge=1)] | None = None
    """Largest request, in bytes; null is 65,536 and 16 for each token of the context, 16 MiB at most."""
    timeout: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """Seconds that an answer may take, the waiting included (504). A client that hangs up ends it at once."""

    @model_validator(mode="after")
    def _others_need_a_key(self) -> Server:
        if not is_loopback(self.host) and self.api_key_env is None:
            raise ValueError(f"host {self.host!r} lets other machines in: name a key for them in api_key_env")
        return self
