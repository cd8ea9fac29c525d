"""Java inside the process leaves the process's other work alone."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

# Solves a system whose factorisation takes more of the stack than Java's own idea of one.
PROGRAM = """
import numpy as np
from mlflow_deploy import pmml_evaluator
pmml_evaluator._start_java()
import jpype
assert jpype.java.lang.Thread.isAttached()
matrix = np.random.default_rng(0).random((2000, 2000))
found = np.linalg.solve(matrix, matrix.sum(axis=1))
assert np.allclose(found, 1.0)
print("solved")
"""


@pytest.mark.skipif(shutil.which("java") is None, reason="no Java runtime on this machine")
def test_the_main_thread_keeps_its_stack() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "solved"), done.stderr
