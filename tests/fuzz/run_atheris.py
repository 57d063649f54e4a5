"""Coverage-guided fuzzing of one parser, for as long as one likes (``pip install atheris``).

``python -m tests.fuzz.run_atheris TARGET [CORPUS FOLDER] [libFuzzer options]``, for example
``python -m tests.fuzz.run_atheris study_toml -max_total_time=600``. What breaks a parser is left in
the current folder as ``crash-*``.
"""

import importlib
import sys
import tempfile
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")  # in no extra: it has no wheel for most Pythons
with atheris.instrument_imports(include=["sdslab", "tomllib", "json"]):
    from tests.fuzz.targets import TARGETS, valid_inputs


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in TARGETS:
        raise SystemExit(f"TARGET must be one of {', '.join(TARGETS)}, got {sys.argv[1:]}")
    name = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate(valid_inputs()[name]):
            (Path(folder) / f"valid{number}").write_bytes(content)
        atheris.Setup([sys.argv[0], *sys.argv[2:], folder], TARGETS[name])
        atheris.Fuzz()


if __name__ == "__main__":
    main()
