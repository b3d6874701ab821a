"""Without a GPU: does anything of training, pruning, scoring and shrinking forget where its tensors lie?

In a process of its own: torch takes a further kind of device only before its first backward pass.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).with_name("test_cuda.py")


def test_nothing_mixes_two_devices():
    environment = {**os.environ, "GENTICKETS_TEST_DEVICE": "elsewhere", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", str(TESTS)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    passed = re.search(r"(\d+) passed", done.stdout.splitlines()[-1])
    assert passed is not None
    assert int(passed[1]) >= 15
