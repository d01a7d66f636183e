"""What Python says of the sequence lock's strategies and PODs is what the headers say, as g++ sees them."""

from __future__ import annotations

import shutil
import subprocess

import pytest

import rdmakit
from rdmakit.device.report import DeviceStatus
from rdmakit.signal import Ordering, Reader, Strategy, abi, cost, is_right, is_strong, right_modes
from rdmakit.signal.strategies import ALL_MODES, HEADER_BYTES, LINE_BYTES, LINE_DATA_BYTES, eager_lines, slot_message

STRUCTS = {
    "LockHeader": abi.LOCK_HEADER,
    "LockSender": abi.LOCK_SENDER,
    "LockReceiver": abi.LOCK_RECEIVER,
    "LockState": abi.LOCK_STATE,
    "LockTransfer": abi.LOCK_TRANSFER,
}
LENGTHS = (0, 1, 88, 89, 4096, 70_000)
STATUSES = {"gap": "GAP", "repeated": "REPEATED", "stale_epoch": "STALE_EPOCH",
            "wrong_fingerprint": "WRONG_FINGERPRINT", "corrupt_payload": "CORRUPT_PAYLOAD"}  # fmt: skip


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Lines `topic subject number` of a program that prints what the headers define."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed (apt install g++)")
    lines = []
    for name, dtype in STRUCTS.items():
        lines.append(f'printf("{name} - %zu\\n", sizeof({name}));')
        lines += [f'printf("{name} {f} %zu\\n", offsetof({name}, {f}));' for f in dtype.names]
    for name in ("kStrategies", "kLockHeaderBytes", "kLineBytes", "kLineDataBytes", "kLockCrc", "kLockNarrowTail"):
        lines.append(f'printf("constant {name} %u\\n", {name});')
    for name in STATUSES:
        lines.append(f'printf("status {name} %u\\n", static_cast<u32>(Status::{name}));')
    for strategy in Strategy:
        at = f"Strategy::{strategy.name.lower()}"
        lines.append(f'printf("strategy {strategy.name} %u\\n", static_cast<u32>({at}));')
        lines.append(f'printf("strong {strategy.name} %d\\n", is_strong({at}));')
        for crc in (0, 1):
            for ordering in Ordering:
                for reader in Reader:
                    mode = f"Ordering::{ordering.name.lower()}, Reader::{reader.name.lower()}"
                    lines.append(
                        f'printf("right {strategy.name}/{crc}/{ordering.name}/{reader.name} %d\\n", '
                        f"is_right({at}, {crc}, {mode}));"
                    )
        for n in LENGTHS:
            lines.append(f'printf("bytes {strategy.name}/{n} %u\\n", slot_message({at}, {n}));')
            for field in ("wqes", "doorbells", "extra_round_trips", "message_bytes"):
                lines.append(
                    f'printf("{field} {strategy.name}/{n} %llu\\n", static_cast<u64>(cost_of({at}, {n}).{field}));'
                )
    source = tmp_path_factory.mktemp("lock") / "lock.cpp"
    source.write_text(
        "#include <cstdio>\n#include <kernels/lock_send.cu>\n#include <kernels/lock_receive.cu>\n"
        "using namespace rdmakit;\nint main() {\n" + "\n".join(lines) + "\n}\n"
    )
    program = source.with_suffix("")
    subprocess.run(["g++", "-std=c++17", "-I", rdmakit.get_include(), source, "-o", program], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {(topic, subject): int(n) for topic, subject, n in (line.split() for line in printed.splitlines())}


@pytest.mark.parametrize("name", STRUCTS)
def test_offsets(said, name):
    dtype = STRUCTS[name]
    ours = {field: dtype.fields[field][1] for field in dtype.names} | {"-": dtype.itemsize}
    assert ours == {field: n for (struct, field), n in said.items() if struct == name}


def test_names_and_constants(said):
    assert {s.name: int(s) for s in Strategy} == {name: n for (t, name), n in said.items() if t == "strategy"}
    assert {ours: DeviceStatus[ours].value for ours in STATUSES.values()} == {
        STATUSES[name]: n for (topic, name), n in said.items() if topic == "status"
    }
    constants = {name: n for (topic, name), n in said.items() if topic == "constant"}
    assert constants == {
        "kStrategies": len(Strategy),
        "kLockHeaderBytes": HEADER_BYTES,
        "kLineBytes": LINE_BYTES,
        "kLineDataBytes": LINE_DATA_BYTES,
        "kLockCrc": abi.FLAG_CRC,
        "kLockNarrowTail": abi.FLAG_NARROW_TAIL,
    }


@pytest.mark.parametrize("strategy", Strategy, ids=lambda s: s.name.lower())
def test_declared_modes_agree(said, strategy):
    for crc in (0, 1):
        for ordering, reader in ALL_MODES:
            want = is_right(strategy, ordering, reader, bool(crc))
            assert said["right", f"{strategy.name}/{crc}/{ordering.name}/{reader.name}"] == want
    assert said["strong", strategy.name] == is_strong(strategy)


def test_declared_modes_are_those_of_the_manuals():
    """Written out once more, as a table that a reader can hold against the man pages."""
    host, gpu = Reader.HOST, Reader.GPU
    strict, relaxed, ooo = Ordering
    everywhere = {(o, r) for o in (strict, relaxed, ooo) for r in (host, gpu)}
    table = {
        ("AMO", False): everywhere,
        ("IMM", False): everywhere,
        ("EAGER", False): {(strict, host), (ooo, host)},
        ("EAGER", True): everywhere,
        ("WRITE", False): {(strict, host), (strict, gpu)},
        ("CQE", False): {(strict, host), (strict, gpu), (ooo, host), (ooo, gpu)},
        ("SPLIT", False): set(),
    }
    assert {key: set(right_modes(Strategy[key[0]], key[1])) for key in table} == table


@pytest.mark.parametrize("strategy", Strategy, ids=lambda s: s.name.lower())
@pytest.mark.parametrize("length", LENGTHS)
def test_costs_agree(said, strategy, length):
    ours = cost(strategy, length)
    for field in ("wqes", "doorbells", "extra_round_trips", "message_bytes"):
        assert said[field, f"{strategy.name}/{length}"] == getattr(ours, field), field
    assert said["bytes", f"{strategy.name}/{length}"] == slot_message(strategy, length)


def test_lines_hold_what_they_must():
    for length in range(2000):
        lines = eager_lines(length)
        assert (lines - 1) * LINE_DATA_BYTES < HEADER_BYTES + length <= lines * LINE_DATA_BYTES
