"""Recordings survive the round trip, and no damaged file is believed or crashes the reader."""

from __future__ import annotations

import hashlib
import json
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from rdmakit.ep import recording, routing
from rdmakit.ep.numerics import dequantize_fp8, quantize_fp8
from rdmakit.errors import BadArgument, CorruptFile

BF16 = ml_dtypes.bfloat16
MADE = {"by": "a test", "seed": 1}


def contents(tokens: int = 5, hidden: int = 256) -> dict[str, Any]:
    made = routing.uniform(tokens, 16, 4, seed=1)
    return {"hidden": np.random.default_rng(2).normal(0, 2, (tokens, hidden)).astype(np.float32),
            "topk_idx": made.topk_idx, "topk_weights": made.topk_weights, "num_experts": 16, "made": MADE}


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    target = tmp_path / "routing.npz"
    recording.save_recording(target, **contents())
    return target


def same(a: recording.Recording, b: recording.Recording) -> bool:
    arrays = ("hidden_q", "hidden_scales", "topk_idx", "topk_weights")
    return (all(getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in arrays)
            and (a.num_experts, a.made) == (b.num_experts, b.made))


def test_round_trip(path: pathlib.Path) -> None:
    want = contents()
    got = recording.load_recording(str(path))
    assert (got.topk_idx == want["topk_idx"]).all()
    assert got.topk_idx.dtype == np.int64
    assert (got.topk_weights == want["topk_weights"]).all()
    assert (got.hidden() == dequantize_fp8(*quantize_fp8(want["hidden"])).astype(BF16)).all()
    assert (got.num_experts, got.made) == (16, MADE)
    assert repr(got) == "Recording(5 tokens x 256, top-4 of 16)"
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # no partial file stays


def test_the_same_contents_give_the_same_bytes(path: pathlib.Path) -> None:
    twin = path.with_name("twin.npz")
    recording.save_recording(twin, **contents())
    assert twin.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("change", [
    {"topk_idx": np.full((5, 4), 16)}, {"topk_idx": np.zeros((5, 4), np.int64)},
    {"topk_idx": np.zeros((4, 1), np.int64), "topk_weights": np.ones((4, 1))},
    {"topk_weights": np.ones((5, 3))}, {"hidden": np.ones((5, 200))}, {"hidden": np.full((5, 128), np.nan)},
    {"topk_idx": np.tile([0.0, 1.0, 2.0, 3.5], (5, 1))}, {"hidden": np.ones((1, 5, 256))},
    {"topk_weights": np.full((5, 4), np.inf)}, {"num_experts": 40_000},
    {"hidden": np.ones((0, 128)), "topk_idx": np.ones((0, 4), int), "topk_weights": np.ones((0, 4))},
])
def test_saving_refuses_what_loading_would(tmp_path: pathlib.Path, change: dict[str, Any]) -> None:
    with pytest.raises(BadArgument):
        recording.save_recording(tmp_path / "bad.npz", **{**contents(), **change})
    assert not list(tmp_path.iterdir())


def load_damaged(path: pathlib.Path, content: bytes) -> recording.Recording:
    path.write_bytes(content)
    return recording.load_recording(path)


def test_every_flipped_byte_is_noticed_or_harmless(path: pathlib.Path) -> None:
    whole = path.read_bytes()
    want = recording.load_recording(path)
    noticed: list[CorruptFile] = []
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF if place % 2 else 0x01
        try:
            got = load_damaged(path, bytes(damaged))
        except CorruptFile as error:
            noticed.append(error)
        else:  # time stamps, local header fields that the central directory repeats
            assert same(got, want), f"byte {place} changed the contents unnoticed"
    assert len(noticed) > 0.8 * len(whole)
    assert all(error.remedy and error.rule for error in noticed)


def test_every_truncation_is_noticed(path: pathlib.Path) -> None:
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        with pytest.raises(CorruptFile):
            load_damaged(path, whole[:length])


def test_random_bytes_are_no_recording(path: pathlib.Path) -> None:
    rng = np.random.default_rng(6)
    for length in (0, 1, 22, 1000):
        with pytest.raises(CorruptFile, match="not a recording"):
            load_damaged(path, rng.bytes(length))


def rebuild(path: pathlib.Path, edit: Callable[[Any, Any], Any], *, sign: bool = True) -> None:
    """Take the file apart, let `edit(arrays, metadata)` loose on it, write it again with right checksums."""
    with np.load(path) as archive:
        arrays = dict(archive)
    metadata = json.loads(arrays.pop("metadata").tobytes())
    edit(arrays, metadata)
    if sign and isinstance(metadata.get("arrays"), dict):
        metadata["arrays"] = {
            name: {"dtype": str(array.dtype), "shape": list(array.shape),
                   "sha256": hashlib.sha256(array.tobytes()).hexdigest()} for name, array in arrays.items()}
    if "metadata" not in arrays:
        arrays["metadata"] = np.frombuffer(json.dumps(metadata).encode(), np.uint8)
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})


def put(array: Any, place: Any, value: Any) -> None:
    array[place] = value


EDITS: dict[str, tuple[str, Callable[[Any, Any], Any], bool]] = {
    "missing array": ("array topk_idx is missing", lambda a, m: a.pop("topk_idx"), True),
    "missing metadata": ("array metadata is missing", lambda a, m: a.update(metadata=None), False),
    "metadata no JSON": ("no JSON", lambda a, m: a.update(metadata=np.arange(9, dtype=np.uint8)), True),
    "metadata a list": ("not a recording of routing",
                        lambda a, m: a.update(metadata=np.frombuffer(b"[1]", np.uint8)), True),
    "other format": ("not a recording of routing", lambda a, m: m.update(format="cats"), True),
    "other version": ("another version", lambda a, m: m.update(version=2), True),
    "no version": ("another version", lambda a, m: m.pop("version"), True),
    "no experts": ("lacks a field", lambda a, m: m.pop("num_experts"), True),
    "experts a float": ("lacks a field", lambda a, m: m.update(num_experts=1.5), True),
    "no checksums": ("lacks a field", lambda a, m: m.update(arrays=None), True),
    "bad checksum": ("hidden_q is not the one that was saved",
                     lambda a, m: put(a["hidden_q"], (0, 0), 1), False),
    "other dtype": ("topk_idx has the wrong type",
                    lambda a, m: a.update(topk_idx=a["topk_idx"].astype(np.int32)), True),
    "one dimension": ("topk_weights has the wrong type",
                      lambda a, m: a.update(topk_weights=a["topk_weights"].ravel()), True),
    "fewer tokens": ("do not belong together",
                     lambda a, m: a.update(topk_weights=a["topk_weights"][:-1]), True),
    "fewer scales": ("do not belong together",
                     lambda a, m: a.update(hidden_scales=a["hidden_scales"][:, :1]), True),
    "no tokens": ("do not belong together",
                  lambda a, m: a.update({k: v[:0] for k, v in a.items()}), True),
    "index out of range": ("token 2, slot 1 names expert 16",
                           lambda a, m: put(a["topk_idx"], (2, 1), 16), True),
    "an expert twice": ("token 1 names expert",
                        lambda a, m: put(a["topk_idx"], (1, 0), a["topk_idx"][1, 1]), True),
    "pickled": ("cannot be read", lambda a, m: a.update(topk_idx=np.array([[{}]], object)), False),
}


@pytest.mark.parametrize("name", EDITS)
def test_a_forged_file_says_what_is_wrong(path: pathlib.Path, name: str) -> None:
    message, edit, sign = EDITS[name]
    rebuild(path, edit, sign=sign)
    with pytest.raises(CorruptFile) as caught:
        recording.load_recording(path)
    assert message in str(caught.value)
    assert caught.value.remedy
    assert caught.value.facts["path"] == str(path)


def test_an_honest_rebuild_loads(path: pathlib.Path) -> None:
    want = recording.load_recording(path)
    rebuild(path, lambda a, m: None)
    assert same(recording.load_recording(path), want)


def test_a_member_that_claims_gigabytes_is_refused_unread(path: pathlib.Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(recording, "_MEMBER_MAX", 100)
    with pytest.raises(CorruptFile, match="claims to be too large"):
        recording.load_recording(path)


def test_a_zip_of_something_else(path: pathlib.Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.npy", b"not npy")
    with pytest.raises(CorruptFile, match="array metadata cannot be read"):
        recording.load_recording(path)


def test_a_missing_file_is_a_missing_file(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        recording.load_recording(tmp_path / "nothing.npz")


@pytest.mark.parametrize("hidden", [128, 256, 384, 7168])
def test_tiles_are_cut_from_one_tape(path: pathlib.Path, hidden: int) -> None:
    tape = recording.load_recording(path)
    first = int(np.random.default_rng(4).integers(5))
    states = tape.hidden()
    for rank in range(3):
        tile = tape.tile(7, hidden, rank, seed=4)
        assert (tile.x.shape, tile.x.dtype) == ((7, hidden), BF16)
        for row in range(7):
            place = first + rank * 7 + row
            assert (tile.topk_idx[row] == tape.topk_idx[place % 5]).all()
            assert (tile.topk_weights[row] == tape.topk_weights[place % 5]).all()
            for channel in (0, 1, 127, hidden // 2, hidden - 1):
                copy, inner = divmod(channel, 256)
                want = states[place % 5, (inner - place // 5 - 31 * copy) % 256]
                assert tile.x[row, channel] == want


def test_no_two_rows_of_all_ranks_are_alike(path: pathlib.Path) -> None:
    tape = recording.load_recording(path)
    rows = np.concatenate([tape.tile(20, 512, rank).x for rank in range(8)])
    assert len(np.unique(rows.view(np.uint16), axis=0)) == 160
    halves = rows.reshape(160, 2, 256).view(np.uint16)
    assert (halves[:, 0] != halves[:, 1]).any(1).all()


def test_tiling_edges(path: pathlib.Path) -> None:
    tape = recording.load_recording(path)
    assert tape.tile(0, 128, 3).x.shape == (0, 128)
    again, other = tape.tile(9, 128, 1, seed=3), tape.tile(9, 128, 1, seed=3)
    assert (again.x == other.x).all()
    assert any((tape.tile(9, 128, 1, seed=s).topk_idx != again.topk_idx).any() for s in range(10))
    for call in (lambda: tape.tile(4, 100, 0), lambda: tape.tile(4, 0, 0), lambda: tape.tile(-1, 128, 0),
                 lambda: tape.tile(1, 128, -1)):
        with pytest.raises(BadArgument):
            call()


def test_the_shipped_recording_is_whole_small_and_real() -> None:
    data = pathlib.Path(recording.__file__).parent / "data" / "routing_stdlib.npz"
    assert data.stat().st_size <= 4 << 20
    got = recording.shipped()
    assert got.topk_idx.shape[1] == 8
    assert got.num_experts >= 64
    assert len(got.topk_idx) >= 2048
    assert got.made["held_out_nats_per_token"] < 0.6 * got.made["blind_guess_nats"]  # it learnt something
    losses = [loss for _, loss in got.made["held_out_curve"]]
    assert losses[-1] == min(losses) < losses[0]
    # Normalised activations: finite, neither dead nor exploding.
    spread = got.hidden().astype(np.float32).std()
    assert 0.1 < spread < 10
    arguments = got.made["arguments"]
    assert got.topk_weights.sum(1) == pytest.approx(arguments["scale"], rel=1e-3)
    group = got.topk_idx // (got.num_experts // arguments["groups"])
    assert max(len(set(row)) for row in group.tolist()) <= arguments["top_groups"]
    figures = routing.skew(got.topk_idx, got.num_experts, num_ranks=8)
    assert 1.05 < figures["expert_max_over_mean"] < 8  # skewed, not collapsed
    assert figures["experts_idle"] == 0
