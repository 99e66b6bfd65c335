"""The tiny models of the backends' tests."""

from tests.backends.conftest import _one_thread, gpt2, llama, model

__all__ = ["_one_thread", "gpt2", "llama", "model"]
