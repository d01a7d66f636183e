"""`rdmakit decode`: hex as people paste it; the dump or one JSON object; status 2 for bad input."""

import argparse
import io
import json

import pytest

from rdmakit.cli import decode as command
from rdmakit.cli import main as rdmakit_main
from rdmakit.errors import BadArgument
from rdmakit.layout import Sge, decode, encode, hexdump

WRITE = encode.write(index=5, qpn=0x123, raddr=0x1000, rkey=7, sges=Sge(0x2000, 64, 9))


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    return parser.parse_args(["decode", *argv])


def call(*argv: str) -> int:
    args = parse(*argv)
    return args.func(args)


@pytest.mark.parametrize(
    "text",
    [
        WRITE.hex(),
        WRITE.hex(" ", 4).upper(),
        WRITE.hex(":"),
        "0x" + WRITE.hex(),
        " ".join(f"0x{WRITE[at : at + 4].hex()}" for at in range(0, 64, 4)),
        "\n".join(f"{at:08x}: {WRITE[at : at + 16].hex(' ')}" for at in range(0, 64, 16)),
        hexdump(WRITE).split("\n", 1)[1],  # its own output, without the title
    ],
)
def test_hex_as_people_paste_it(text, capsys):
    assert call(text) == 0
    assert capsys.readouterr().out == hexdump(WRITE) + "\n"


def test_words_may_be_separate_arguments(capsys):
    assert call(*WRITE.hex(" ", 4).split()) == 0
    assert capsys.readouterr().out == hexdump(WRITE) + "\n"


def test_stdin(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO(WRITE.hex()))
    assert call("-") == 0
    assert "RDMA_WRITE" in capsys.readouterr().out


def test_json_is_one_object_with_the_agreed_keys(capsys):
    assert call("--json", WRITE.hex()) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"ok", "figures", "config", "decoded"}
    assert result["ok"] is True
    assert all(isinstance(value, (int, float)) for value in result["figures"].values())
    assert result["figures"]["qpn"] == 0x123 and result["figures"]["problems"] == 0
    assert result["config"] == {"kind": "wqe", "kind_given": None, "qp_type": "rc"}
    assert result["decoded"] == decode(WRITE).to_dict()
    assert result == json.loads(json.dumps(command.run(parse(WRITE.hex()))))


def test_problems_give_status_1(capsys):
    assert call("--kind", "wqe", bytes(64).hex()) == 1
    assert "problem: ds is 0" in capsys.readouterr().out


@pytest.mark.parametrize("argv", [["zz"], ["123"], [""], ["00"], ["--kind", "cqe", "00000000"]])
def test_bad_input_gives_status_2_and_says_why(argv, capsys):
    assert rdmakit_main(["decode", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ")
    assert rdmakit_main(["decode", "--json", *argv]) == 2
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False and said["error"]["what"]


def test_bad_hex_names_the_group():
    with pytest.raises(BadArgument, match="'0x12g4'"):
        command.parse_hex("0011 0x12g4")


@pytest.mark.parametrize(
    ("kind", "word"), [("dbrec", "snd=5"), ("doorbell", "wqe_index=0"), ("cq_dbrec", "set_ci=0")]
)
def test_the_kind_decides_what_eight_bytes_are(kind, word, capsys):
    call("--kind", kind, "00000000 00000005")
    assert word in capsys.readouterr().out
