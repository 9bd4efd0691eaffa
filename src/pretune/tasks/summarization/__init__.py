"""A text into a shorter one."""
