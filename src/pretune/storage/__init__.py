"""Where files lie besides the disk: the cache, and object storage."""
