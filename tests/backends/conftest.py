"""Tiny models, made once for all tests of the backends, and one torch thread: they are too small to share work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers.utils import logging

from tests.backends.helpers import make_model, make_tokenizer


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers is typed in parts
    yield
    logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # transformers is typed in parts
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With chat template and pad token; its tokenizer pads on the right."""
    return make_model(tmp_path_factory.mktemp("llama"), "llama", seed=1)


@pytest.fixture(scope="session")
def qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without a pad token; pads on the left."""
    return make_model(
        tmp_path_factory.mktemp("qwen2"), "qwen2", seed=2, tokenizer=make_tokenizer(pad=False, side="left")
    )


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without chat template and pad token; its tokenizer puts special tokens around a text. Positions are learnt."""
    tokenizer = make_tokenizer(template=None, pad=False, bos=True)
    return make_model(tmp_path_factory.mktemp("gpt2"), "gpt2", seed=3, tokenizer=tokenizer)


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Path:
    """The model named by an indirect parameter."""
    directory = request.getfixturevalue(request.param)
    assert isinstance(directory, Path)
    return directory
