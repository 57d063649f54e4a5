import subprocess
import sys

import pytest

from tests.interpreted import INTERPRETED, PLAIN, assert_it_passes


@pytest.mark.skipif(INTERPRETED, reason="the bodies are interpreted in this process")
def test_interpreted_bodies(interpreted_tests: subprocess.Popen[str]):
    assert_it_passes(interpreted_tests)


def test_importing_the_ops_does_not_import_triton():
    code = "import sys, sdslab.kernels; sys.exit('triton' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], env=PLAIN, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
