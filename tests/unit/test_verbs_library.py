"""Opening libibverbs: what is missing is named, with what to do; nothing is loaded before it is needed."""

import ctypes.util
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytest.importorskip("rdmakit.verbs._verbs", reason="python setup.py build_ext --inplace")


def python(code, **environment):
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)


def test_a_missing_library_is_named_with_the_package_that_has_it():
    done = python("from rdmakit.verbs import _verbs; _verbs.devices()", RDMAKIT_LIBIBVERBS="/nowhere/libibverbs.so.1")
    assert "NotAvailable" in done.stderr and "/nowhere/libibverbs.so.1" in done.stderr
    assert "apt-get install libibverbs1" in done.stderr


def test_a_library_without_the_calls_is_named_with_the_first_that_is_missing():
    other = ctypes.util.find_library("m")
    done = python("from rdmakit.verbs import _verbs; _verbs.devices()", RDMAKIT_LIBIBVERBS=other)
    assert "NotAvailable" in done.stderr and "is not in libibverbs" in done.stderr


def test_opening_an_unknown_name_says_why_no_rdma_device_is_listed():
    done = python("import rdmakit; rdmakit.open('mlx5_77')", RDMAKIT_LIBIBVERBS="/nowhere/libibverbs.so.1")
    assert "UnknownDevice" in done.stderr and "mlx5_77" in done.stderr and "libibverbs cannot be loaded" in done.stderr


@pytest.mark.skipif(ctypes.util.find_library("ibverbs") is None, reason="apt-get install libibverbs1")
def test_without_libmlx5_the_rest_still_works():
    code = "from rdmakit.verbs._verbs import libraries as got; print(got()['mlx5'] == '', got()['mlx5_missing'])"
    done = python(code, RDMAKIT_LIBMLX5="/nowhere/libmlx5.so.1")
    assert done.stdout.startswith("True /nowhere/libmlx5.so.1"), done.stdout + done.stderr


def test_importing_opens_no_library():
    code = "import rdmakit.verbs._verbs, rdmakit.verbs.backend; print('ibverbs' in open('/proc/self/maps').read())"
    done = python(code)
    assert done.stdout.strip() == "False", done.stdout + done.stderr


def cpu_seconds(code):
    """Of a fresh interpreter, the least of five: other work on the machine does not count, cold caches once."""
    measured = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = python(code)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        measured.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(measured)


def test_importing_is_quick():
    """0.15 s for rdmakit; as much again where NumPy is there already for what opens devices."""
    assert cpu_seconds("import rdmakit") - cpu_seconds("pass") < 0.15
    assert cpu_seconds("import numpy, rdmakit.verbs.backend; rdmakit.open") - cpu_seconds("import numpy") < 0.15
