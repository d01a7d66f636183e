"""A user's kernel file under explore: held or caught, and clear words when the file is not what it has to be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rdmakit.errors import BadArgument, RdmakitError
from rdmakit.explore.explorer import Explorer

FLAG = Path(__file__).resolve().parents[2] / "tutorials" / "flag_behind_data.cu"


def test_a_flag_behind_data_holds_in_order_only():
    assert Explorer(str(FLAG)).run(1000).ok
    for ordering in ("relaxed", "out_of_order"):
        assert not Explorer(str(FLAG), ordering=ordering).run(1000).ok


def test_the_atomic_that_its_comment_names_is_right_everywhere(tmp_path):
    mended = tmp_path / "mended.cu"
    mended.write_text(FLAG.read_text().replace("put_word(*qp, word, 1) ==", "signal(*qp, word, 1) =="))
    for ordering in ("strict", "relaxed", "out_of_order"):
        found = Explorer(str(mended), ordering=ordering, bytes=200).run(500)
        assert found.ok, found


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("#include <rdmakit/signal.cuh>\nRDMAKIT_KERNEL send(int* p) {}\n", {}, "no kernel receive"),
        (None, {}, "no such file"),
        (FLAG.read_text(), {"ordering": "any"}, "no such ordering"),
        (FLAG.read_text(), {"bytes": 0}, "nothing to send"),
    ],
)
def test_what_is_no_scenario_is_said_so(tmp_path, text, options, said):
    file = tmp_path / "mine.cu"
    if text is not None:
        file.write_text(text)
    with pytest.raises(BadArgument, match=said):
        Explorer(str(file), **options)


def test_a_compiler_error_names_the_file(tmp_path):
    file = tmp_path / "mine.cu"
    file.write_text(FLAG.read_text().replace("u64 seen = 0;", "u64 seen = nothing;"))
    with pytest.raises(RdmakitError, match=r"mine\.cu:\d+.*nothing"):
        Explorer(str(file))


def test_from_the_command_line():
    command = [sys.executable, "-m", "rdmakit", "explore", str(FLAG), "--set", "ordering=relaxed", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    said = json.loads(done.stdout)
    assert done.returncode == 1 and said["ok"] is False
    figures = said["figures"]
    assert figures["failures"] == 1 and figures["schedules"] <= 1000
    again = ["replay", str(FLAG), "--set", "ordering=relaxed", "--seed", str(figures["first_failing_seed"])]
    told = subprocess.run([sys.executable, "-m", "rdmakit", *again], capture_output=True, text=True, timeout=60)
    assert "places payload" in told.stdout
