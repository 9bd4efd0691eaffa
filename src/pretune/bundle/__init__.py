"""A model with its tokenizer and its task: load, save, make afresh, convert."""
