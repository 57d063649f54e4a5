import subprocess
import sys

import pytest

from tests.kernels.conftest import INTERPRETED, PLAIN


@pytest.mark.skipif(INTERPRETED, reason="the bodies are interpreted in this process")
def test_interpreted_bodies(interpreted_tests: subprocess.Popen[str]):
    pytest.importorskip("triton", reason="triton is not installed")
    printed, _ = interpreted_tests.communicate()
    assert interpreted_tests.returncode == 0, printed


def test_importing_the_ops_does_not_import_triton():
    code = "import sys, sdslab.kernels; sys.exit('triton' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], env=PLAIN, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
