"""The kernels under AddressSanitizer and UndefinedBehaviorSanitizer, against plain loops."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["-DHAVE_V3=OFF"], marks=pytest.mark.soak, id="portable"),
        pytest.param([], marks=pytest.mark.soak, id="all levels"),
    ],
)
def test_the_kernels_are_right_under_sanitizers(tmp_path, options):
    if not shutil.which("cmake") or not shutil.which(os.environ.get("CXX", "c++")):
        pytest.skip("building the check needs cmake and a C++ compiler")

    def run(*command):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("cmake", "-S", ROOT, "-B", tmp_path, "-DSPARSEFLOW_SANITIZE=ON", *options)
    run("cmake", "--build", tmp_path, "--parallel", "2")
    assert run(tmp_path / "check").endswith("portable are right\n")
