"""OpenAI's protocol over an ``Engine``: ``create_app`` for ASGI servers, ``serve`` for a program of its own. Needs the
packages of the extra ``serve``.
"""

from asyncgen.server.app import create_app, model_id
from asyncgen.server.program import serve

__all__ = ["create_app", "model_id", "serve"]
