"""Files on disk: written whole or not at all, cached, and never pickled."""
