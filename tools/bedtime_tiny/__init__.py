"""How the bundled toy model is made: a lexicon, a story grammar, a tokenizer, training, evaluation and export."""
