"""What comes out: a folder that appears whole or not at all, with its config, tokenizer and card."""
