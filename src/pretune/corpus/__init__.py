"""From raw text to tokenized shards on disk, and reading those by memory map."""
