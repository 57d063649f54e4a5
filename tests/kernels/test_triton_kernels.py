import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def run_python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path)} | variables
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the bodies are interpreted in this process"
)
def test_interpreted_bodies():
    pytest.importorskip("triton", reason="triton is not installed")
    run = run_python(
        *("-m", "pytest", str(FOLDER), "-k", "interpreted and not test_interpreted_bodies"),
        *("--confcutdir", str(FOLDER), "-p", "no:cacheprovider"),
        TRITON_INTERPRET="1",
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_importing_the_ops_does_not_import_triton():
    run = run_python("-c", "import sys, sdslab.kernels; sys.exit('triton' in sys.modules)")
    assert run.returncode == 0, run.stderr
