"""Writes the trained model in the form that ships: half-precision weights, tokenizer, chat template, settings."""

import json
from pathlib import Path

import torch
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

MODEL_DIRECTORY = Path(__file__).parents[2] / "asyncgen" / "models" / "bedtime_tiny"


def export(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, directory: Path = MODEL_DIRECTORY) -> None:
    """Save everything but the model card, which is written by hand."""
    directory.mkdir(parents=True, exist_ok=True)
    model = model.to(torch.float16).eval()  # type: ignore[arg-type]
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]  # the library has no types here
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=True,
        temperature=0.8,
        max_new_tokens=220,
    )
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _tidy(directory)


def _tidy(directory: Path) -> None:
    """Keep of the tokenizer's settings what means something elsewhere; let everyone read the files."""
    settings = directory / "tokenizer_config.json"
    kept = json.loads(settings.read_text(encoding="utf-8"))
    for name in ("is_local", "local_files_only", "backend"):
        kept.pop(name, None)
    kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    for path in directory.iterdir():
        path.chmod(0o644)
