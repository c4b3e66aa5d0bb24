"""The recipe of the bundled checkpoints: a world of shapes, tokenizer and transformer training, and their judge."""
