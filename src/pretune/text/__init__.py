"""Text to token ids and back: training and loading tokenizers, encoding single texts and pairs."""
