"""The model's own tokenizer: a byte-level BPE in which nearly every word of the vocabulary is one token.

Trained on grammar stories, the prompts' format and the vocabulary list itself. Bytes are the fallback, so any text can
be represented. The chat format is ChatML-like, with a begin token in front.
"""

import random
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tools.bedtime_tiny import conversation, lexicon

VOCABULARY_SIZE = 4096
PAD, BEGIN, TURN, END = "<|pad|>", "<|begin|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def _training_text(seed: int) -> list[str]:
    rng = random.Random(seed)
    texts: list[str] = []
    for _ in range(6000):
        drawn = conversation.draw(rng, 0, unknown=0.02, foreign=0.0)
        texts += [drawn.system, drawn.turns[0].question, drawn.turns[0].answer, "user\n", "assistant\n", "system\n"]
    for word in lexicon.kinds():
        texts += [f"a {word} and {word}"] * 40
    return texts


def build(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer; the same seed gives the same tokenizer."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=[PAD, BEGIN, TURN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_training_text(seed), trainer)
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # the library has no types here
        tokenizer_object=core, bos_token=BEGIN, eos_token=END, pad_token=PAD, additional_special_tokens=[TURN],
        clean_up_tokenization_spaces=False, padding_side="left", model_max_length=2048,
    )  # fmt: skip
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def load(directory: Path) -> PreTrainedTokenizerFast:
    """A tokenizer that was saved."""
    tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(directory)
    return tokenizer
