"""``python -m sdslab.study``: runs a study described by a TOML file and writes its figures."""
