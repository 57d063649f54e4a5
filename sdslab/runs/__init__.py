"""A piece of work in a folder: its lock, record, checkpoints and files."""
