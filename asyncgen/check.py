"""What ``python -m asyncgen check`` says: everything that can be wrong is found, without loading a model."""

from __future__ import annotations

from asyncgen.backends import check_model
from asyncgen.backends.find import cautions
from asyncgen.config import Config
from asyncgen.prompts import Inputs, check_inputs
from asyncgen.session import progress_on_disk
from asyncgen.validators import open_validators

__all__ = ["describe"]


def describe(config: Config) -> str:
    """A few lines on what a run would do. Raises InputError or OutputError for the first thing that is wrong."""
    inputs = check_inputs(config)
    open_validators(config)
    check_model(config)
    progress = progress_on_disk(config)
    goal = "stories until the sources end" if config.num_stories is None else f"{config.num_stories} stories"
    made = "nothing there yet" if progress is None else f"{progress.accepted} stories are there"
    return "\n".join(
        [
            *(f"prompts   {_prompts(each, config)}" for each in inputs),
            f"model     {config.model_name} ({config.backend.kind})",
            f"goal      {goal}, at most {config.attempts} attempts at a prompt",
            f"output    {config.output_path} ({made})",
            *(f"caution   {text}" for text in cautions(config)),
            "all is well",
        ]
    )


def _prompts(inputs: Inputs, config: Config) -> str:
    if inputs.prompts is not None:
        return f"{inputs.prompts} ready prompts"
    if inputs.function:
        return f"those of {inputs.function}"
    shots = f"{config.shots} of {inputs.examples} examples in front" if config.shots else "no examples in front"
    return f"template with {inputs.words} words and {inputs.conditions} conditions, {shots}"
