"""The ``openai`` backend: a server that speaks OpenAI's protocol. Importing this does not import the package openai."""

from asyncgen.backends.openai.opening import open_server

__all__ = ["open_server"]
