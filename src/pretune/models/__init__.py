"""Models one can read: each family is one file, equal in numbers to the published one."""
