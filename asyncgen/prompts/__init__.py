"""The plan and the prompt sources: what a run asks the model, as a function of configuration, seed and index.

template, vocabulary, features, conversation -> Plan ---.
                                                        +-> PromptSource.take(start, count) -> Prompt
prompts.jsonl -> LineCutter -> read_prompt -------------'
"""

from __future__ import annotations

from asyncgen.prompts.plan import Plan
from asyncgen.prompts.sources import Inputs, PromptSource, check_inputs, input_files, open_source

__all__ = ["Inputs", "Plan", "PromptSource", "check_inputs", "input_files", "open_source"]
