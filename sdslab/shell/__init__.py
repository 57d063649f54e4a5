"""A program at the command line: options, names, progress, interruptions, streams."""
