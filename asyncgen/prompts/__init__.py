"""The plan and the prompt sources: what a run asks the model, as a function of configuration, seed and index.

template, vocabulary, features, conversation -> Plan -----.
prompts.jsonl -> LineCutter -> read_items -> Ahead --------+-> Mixing: Sources.take(index, count) -> Prompt
async def function(start) -> PythonItems.read -> Ahead ----'
"""

from __future__ import annotations

from asyncgen.prompts.inputs import Inputs, check_inputs, input_files
from asyncgen.prompts.mixing import End
from asyncgen.prompts.plan import Plan
from asyncgen.prompts.sources import PromptSource, Sources, open_source

__all__ = ["End", "Inputs", "Plan", "PromptSource", "Sources", "check_inputs", "input_files", "open_source"]
