"""Alternate paths and static rates on their way through the bindings, both ways, as the distribution's header has them.

No device here takes an alternate path. So a library stands in front of libibverbs that does: compiled from the header,
it notes what ibv_modify_qp is given, keeps it from the emulated ConnectX (InfiniBand ports), and gives it back in
ibv_query_qp.
"""

import ipaddress
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rdmakit.emu.uverbs import missing, preloaded

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++: apt-get install g++"),
    pytest.mark.skipif(
        not Path("/usr/include/infiniband/verbs.h").exists(), reason="no headers: apt-get install libibverbs-dev"
    ),
]

SHIM = r"""
#include <dlfcn.h>
#include <infiniband/verbs.h>

#include <cstdio>
#include <cstdlib>
#include <map>

namespace {

std::map<ibv_qp*, ibv_qp_attr> kept;

template <class F> F real(F, const char* name) {
    return reinterpret_cast<F>(dlsym(dlopen("libibverbs.so.1", RTLD_NOW), name));
}

void note(std::FILE* to, const char* name, const ibv_ah_attr& ah) {
    std::fprintf(to, "\"%s\": {\"dgid\": \"", name);
    for (unsigned char byte : ah.grh.dgid.raw) std::fprintf(to, "%02x", byte);
    std::fprintf(to,
                 "\", \"dlid\": %u, \"flow_label\": %u, \"sgid_index\": %u, \"hop_limit\": %u, \"traffic_class\": %u, "
                 "\"sl\": %u, \"static_rate\": %u, \"src_path_bits\": %u, \"is_global\": %u, \"port_num\": %u}",
                 ah.dlid, ah.grh.flow_label, ah.grh.sgid_index, ah.grh.hop_limit, ah.grh.traffic_class, ah.sl,
                 ah.static_rate, ah.src_path_bits, ah.is_global, ah.port_num);
}

}  // namespace

extern "C" int ibv_modify_qp(ibv_qp* qp, ibv_qp_attr* attr, int mask) {
    ibv_qp_attr passed = *attr;
    ibv_qp_attr& mine = kept[qp];
    if (mask & IBV_QP_AV) {
        mine.ah_attr = attr->ah_attr;
        passed.ah_attr.static_rate = 0;
    }
    if (mask & IBV_QP_PATH_MIG_STATE) mine.path_mig_state = attr->path_mig_state;
    if (mask & IBV_QP_ALT_PATH) {
        mine.alt_ah_attr = attr->alt_ah_attr;
        mine.alt_pkey_index = attr->alt_pkey_index;
        mine.alt_port_num = attr->alt_port_num;
        mine.alt_timeout = attr->alt_timeout;
    }
    if (mask & (IBV_QP_AV | IBV_QP_ALT_PATH)) {
        std::FILE* to = std::fopen(std::getenv("SHIM_NOTES"), "a");
        std::fprintf(to, "{\"mask\": %d, ", mask);
        note(to, mask & IBV_QP_AV ? "ah_attr" : "alt_ah_attr", mask & IBV_QP_AV ? attr->ah_attr : attr->alt_ah_attr);
        std::fprintf(to,
                     ", \"alt_pkey_index\": %u, \"alt_port_num\": %u, \"alt_timeout\": %u, \"path_mig_state\": %d}\n",
                     attr->alt_pkey_index, attr->alt_port_num, attr->alt_timeout, attr->path_mig_state);
        std::fclose(to);
    }
    mask &= ~(IBV_QP_ALT_PATH | IBV_QP_PATH_MIG_STATE);
    return real(&ibv_modify_qp, "ibv_modify_qp")(qp, &passed, mask);
}

extern "C" int ibv_query_qp(ibv_qp* qp, ibv_qp_attr* attr, int mask, ibv_qp_init_attr* made) {
    const int code = real(&ibv_query_qp, "ibv_query_qp")(qp, attr, mask, made);
    const ibv_qp_attr& mine = kept[qp];
    attr->ah_attr = mine.ah_attr;
    attr->alt_ah_attr = mine.alt_ah_attr;
    attr->alt_pkey_index = mine.alt_pkey_index;
    attr->alt_port_num = mine.alt_port_num;
    attr->alt_timeout = mine.alt_timeout;
    attr->path_mig_state = mine.path_mig_state;
    return code;
}
"""
PROGRAM = r"""
import json, sys
import rdmakit
from rdmakit.device import connected_pair

kind, route, alternate = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
with rdmakit.open(f"mlx5_0{kind}") as here, rdmakit.open(f"mlx5_1{kind}") as there:
    near, far = connected_pair(here, there)
    near.modify("RESET").connect(far, **route)
    near.modify("RTS", path_mig_state="rearm", **alternate)
    found = near.query()
    again = {name: found[name] for name in alternate}
    near.modify("RTS", **again)  # what a query says can be set
    assert near.query() == found
print(json.dumps(found, default=bytes.hex))
"""


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shim")
    source, library = folder / "shim.cpp", folder / "shim.so"
    source.write_text(SHIM)
    linked = ("-Wl,--no-as-needed", "-libverbs", "-ldl")  # what it does not define itself is libibverbs's
    subprocess.run(["g++", "-std=c++17", "-shared", "-fPIC", "-o", library, source, *linked], check=True)
    return library


@pytest.mark.parametrize("kind", ["", ":queues=proxied"], ids=["own", "proxied"])
def test_every_field_arrives_and_comes_back(kind, shim, tmp_path, rng):
    def some(bits):
        return int(rng.integers(1, 1 << bits))

    route = {"sl": some(4), "src_path_bits": some(7), "static_rate": "IBV_RATE_100_GBPS"}
    address = {
        "dgid": f"fe80::{some(16):x}:{some(16):x}", "dlid": some(16), "flow_label": some(20), "sgid_index": some(8),
        "hop_limit": some(8), "traffic_class": some(8), "sl": some(4), "static_rate": "25_GBPS",
        "src_path_bits": some(7),
    }  # fmt: skip
    alternate = {"alt_ah_attr": address, "alt_pkey_index": some(16), "alt_port_num": some(8), "alt_timeout": some(5)}
    notes = tmp_path / "notes"
    with preloaded(2) as environment:
        for layer in Path(environment["SYSFS_PATH"]).glob("class/infiniband/*/ports/*/link_layer"):
            layer.write_text("InfiniBand\n")
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, kind, json.dumps(route), json.dumps(alternate)], text=True, timeout=120,
            capture_output=True, env={**environment, "PYTHONPATH": str(ROOT), "RDMAKIT_LIBIBVERBS": str(shim),
                              "SHIM_NOTES": str(notes)},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = [json.loads(line) for line in notes.read_text().splitlines()]
    gid = ipaddress.IPv6Address(address["dgid"]).packed.hex()
    expected = {**address, "dgid": gid, "static_rate": 15, "is_global": 1,
                "port_num": alternate["alt_port_num"]}  # fmt: skip

    first = next(note for note in seen if "ah_attr" in note and note["ah_attr"]["static_rate"])
    assert {name: first["ah_attr"][name] for name in route} == {**route, "static_rate": 16}
    second, again = (note for note in seen if "alt_ah_attr" in note)
    assert second["mask"] == 1 | 1 << 14 | 1 << 18 and second["path_mig_state"] == 1
    assert again["mask"] == 1 | 1 << 14, "the same path, without a migration state"
    for note in (second, again):
        assert note["alt_ah_attr"] == expected
        assert {name: note[name] for name in alternate if name != "alt_ah_attr"} == {
            name: value for name, value in alternate.items() if name != "alt_ah_attr"
        }

    found = json.loads(done.stdout)
    assert found["alt_ah_attr"] == expected and found["path_mig_state"] == 1
    assert {name: found[name] for name in route} == {**route, "static_rate": 16}
    assert [found[name] for name in ("alt_pkey_index", "alt_port_num", "alt_timeout")] == [
        alternate[name] for name in ("alt_pkey_index", "alt_port_num", "alt_timeout")
    ]
