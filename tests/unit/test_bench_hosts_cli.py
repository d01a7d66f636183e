"""`rdmakit bench mesh` and `bench hosts`: their records, and what they say when they cannot run."""

import json

import pytest

from rdmakit.cli import main

PLACES = ("RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS",
          "PMI_RANK", "PMI_SIZE")  # fmt: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    for name in PLACES:
        monkeypatch.delenv(name, raising=False)


def test_a_mesh_of_emulated_devices_is_made_and_timed(capsys):
    assert main(["bench", "mesh", "--devices", "emu", "--ranks", "3", "--qps", "4", "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)
    assert kept["ok"] and kept["what"] == "rdmakit bench mesh" and kept["measured"]
    figures = kept["figures"]
    assert figures["qps"] == 3 * 2 * 4 and figures["qps_per_second"] > 0
    assert all(figures[f"{step}_s"] > 0 for step in ("meet", "create", "exchange", "connect"))


def test_the_table_names_ports_and_times(capsys):
    assert main(["bench", "mesh", "--devices", "emu", "--ranks", "2", "--qps", "4"]) == 0
    said = capsys.readouterr().out
    assert "2 ranks, 4 queue pairs to each other: 8 made" in said and "port 2 = mlx5_0 port 2: 2 queue pairs" in said
    assert "queue pairs a second" in said and "connect" in said


def test_a_rank_of_several_processes_meets_the_others_where_the_launcher_says(tmp_path, monkeypatch, capsys):
    """Alone in a directory, with a launcher's variables: the missing rank is named."""
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "1")
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    given = ["bench", "mesh", "--meet", f"file:{tmp_path}/here", "--devices", "emu", "--timeout", "0.3"]
    assert main(given) == 2
    assert "rank 1 waited for rank 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["hosts", "--meet", "file:{}", "--devices", "emu"], "which rank of how many"),
        (["hosts", "--meet", "file:{}", "--rank", "0", "--ranks", "1", "--devices", "emu"], "no such hosts"),
        (["hosts", "--meet", "nowhere", "--rank", "0", "--ranks", "2", "--devices", "emu"], "no place to meet"),
        (["hosts", "--meet", "file:{}", "--rank", "0", "--ranks", "2", "--devices", "emu", "--hidden", "100"],
         "sizes that make no trial"),
        (["mesh", "--meet", "file:{}", "--devices", "emu"], "which rank of how many"),
    ],
)  # fmt: skip
def test_what_cannot_be_says_so(tmp_path, capsys, given, said):
    assert main(["bench", *(part.format(tmp_path / "here") for part in given)]) == 2
    error = capsys.readouterr().err
    assert said in error and "remedy" in error
