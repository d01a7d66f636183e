"""Every order, condition and check of the device code is needed: exploration fails with any one of them weaker."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rdmakit
from rdmakit.errors import BadArgument
from rdmakit.explore import sites as module
from rdmakit.explore.explorer import Explorer
from rdmakit.explore.mutants import run_all_mutants, run_mutants
from rdmakit.explore.sites import Kind, mutants_of, sites

INCLUDE = Path(rdmakit.get_include())


@pytest.mark.timeout(600)
def test_all_mutants_are_killed():
    run = run_all_mutants(budget=2000)
    print(run)
    assert run.total > 150
    assert run.ok, str(run)
    assert not run.survived and not run.never_ran


def test_a_script_without_a_main_guard_is_told_so(tmp_path):
    """Its processes import it, and it would start them anew: one error of ours, nothing of multiprocessing's."""
    script = tmp_path / "unguarded.py"
    script.write_text("from rdmakit.explore.mutants import run_all_mutants\nrun_all_mutants(budget=1, jobs=1)\n")
    there = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=there)
    assert done.returncode == 1 and "__main__" in done.stderr
    assert done.stderr.count("Traceback") == 1 and "LaunchError" in done.stderr, done.stderr


def test_a_primitive_cannot_be_forgotten():
    """What atom.cuh and atom_bulk.cuh offer that takes a Site is known to `sites`, or orders nothing by itself."""
    offered = set()
    for name in ("atom.cuh", "atom_bulk.cuh"):
        text = (INCLUDE / "rdmakit" / name).read_text(encoding="utf-8")
        offered |= set(re.findall(r"RDMAKIT_DEVICE \w+\*? (\w+)\([^;{]*Site site = Site::here\(\)", text))
    assert {"load_acquire", "fence", "holds"} <= offered
    data = {"load_stream", "store_stream", "store_segment"}
    no_order = data | {"mbarrier_init", "bulk_load", "bulk_store", "bulk_commit"}
    assert offered - set(module._PRIMITIVES) <= no_order


def test_sites_are_where_they_say():
    found = sites()
    assert len(found) > 70
    for site in found:
        line = (INCLUDE / site.file).read_text(encoding="utf-8").splitlines()[site.line - 1]
        assert site.name in line, site
        assert mutants_of(site) or site.kind in (Kind.LOAD, Kind.STORE, Kind.UPDATE), site


def test_two_of_a_kind_on_a_line_are_refused(tmp_path, monkeypatch):
    header = tmp_path / "rdmakit" / "twice.cuh"
    header.parent.mkdir()
    header.write_text("u32 f() { return load_acquire(p) + load_relaxed<Scope::gpu>(q); }  // load_acquire(r)\n")
    monkeypatch.setattr(rdmakit, "get_include", lambda: str(tmp_path))
    with pytest.raises(BadArgument, match=r"twice\.cuh:1"):
        sites()


def test_a_mutant_that_nobody_meets_is_not_killed():
    """The judge can say no: one scenario alone comes by few places, and what it does not meet is reported."""
    run = run_mutants([Explorer("put-signal")], budget=200, only=lambda m: m.site.file == "rdmakit/report.cuh")
    assert run.never_ran and not run.ok
    assert "never ran" in str(run)
    assert run.figures()["survived"] == len(run.survived) + len(run.never_ran)


def test_a_mutation_ends_with_its_run():
    explorer = Explorer("put-signal")
    assert explorer.run(300).ok
    killed = run_mutants([explorer], budget=300, only=lambda m: m.site.name == "fence").killed
    assert killed
    assert explorer.run(300).ok
