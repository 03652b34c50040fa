"""What comes out: a folder that appears whole or not at all. With its config, tokenizer and card."""
