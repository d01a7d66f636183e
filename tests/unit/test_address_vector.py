"""Names, numbers and ranges of what a queue pair is told of its ways, before a device sees any of it; and what emulated
devices refuse of it."""

import numpy as np
import pytest

import rdmakit
from rdmakit.device import MigrationState, QPState, StaticRate, connected_pair
from rdmakit.device.address_vector import ADDRESS_WIDTHS, ALTERNATE, static_rate
from rdmakit.device.qp_attributes import attribute_mask, plain_attributes
from rdmakit.errors import BadArgument, NotAvailable

ALT = {"alt_ah_attr": {"dlid": 7}, "alt_port_num": 1, "alt_pkey_index": 0, "alt_timeout": 14}
AV, ALT_PATH, PATH_MIG_STATE, STATE = 1 << 7, 1 << 14, 1 << 18, 1  # enum ibv_qp_attr_mask


@pytest.mark.parametrize("rate", StaticRate)
def test_a_rate_has_three_names_and_a_number(rate):
    short = rate.name.removeprefix("RATE_").lower()
    for said in (rate, int(rate), np.uint8(rate), rate.name, f"IBV_{rate.name}", short):
        assert plain_attributes({"static_rate": said}) == {"static_rate": int(rate)}
    assert type(plain_attributes({"static_rate": rate})["static_rate"]) is int


@pytest.mark.parametrize("wrong", [1, 25, -1, 100, "100", "100 Gb/s", "", None, 2.5])
def test_what_is_no_rate_is_refused_with_those_that_there_are(wrong):
    with pytest.raises(BadArgument) as caught:
        static_rate(wrong)
    assert caught.value.value == f"static_rate={wrong!r}" and "100_GBPS (16)" in caught.value.rule
    assert caught.value.remedy


def test_each_attribute_sets_its_bit():
    for names, bit in ((("static_rate", "src_path_bits", "is_global", "sl"), AV), (ALTERNATE, ALT_PATH),
                       (("path_mig_state",), PATH_MIG_STATE)):  # fmt: skip
        for name in names:
            assert attribute_mask({name: 0}) == STATE | bit, name


@pytest.mark.parametrize("name", ADDRESS_WIDTHS)
def test_an_address_vector_holds_what_its_fields_hold(name, rng):
    most = (1 << ADDRESS_WIDTHS[name]) - 1
    inside = int(rng.integers(0, most + 1))
    for value in (0, most, inside):
        assert plain_attributes({name: value}) == {name: value}
        address = {"dlid": 1, name: value}
        plain = plain_attributes({**ALT, "alt_ah_attr": address})
        assert plain == {**ALT, "alt_ah_attr": {**address, "port_num": 1}} and "port_num" not in address
    for value in (-1, most + 1, "some", None):
        alternate = {**ALT, "alt_ah_attr": {"dlid": 1, name: value}}
        for attributes, said in (({name: value}, name), (alternate, f"alt_ah_attr.{name}")):
            with pytest.raises(BadArgument) as caught:
                plain_attributes(attributes)
            assert caught.value.value == f"{said}={value!r}" and "bits" in caught.value.rule
            assert str(most) in caught.value.remedy


def test_an_alternate_path_is_whole_and_leads_somewhere():
    for name in ALTERNATE:
        with pytest.raises(BadArgument, match=f"name {name}, too"):
            plain_attributes({key: value for key, value in ALT.items() if key != name})
    for wrong, said in (
        ({"alt_ah_attr": {"sl": 1}}, "leads nowhere"), ({"alt_ah_attr": {"dlid": 1, "lid": 2}}, r"alt_ah_attr\.lid"),
        ({"alt_ah_attr": 7}, "a dict"), ({"alt_ah_attr": {"dlid": 1, "port_num": 2}}, "alt_port_num is 1"),
        ({"alt_ah_attr": {"dlid": 1, "static_rate": 1}}, r"alt_ah_attr\.static_rate=1"),
        ({"alt_timeout": 32}, "5 bits"),
        ({"alt_ah_attr": {"dgid": b"short"}}, r"alt_ah_attr\.dgid"), ({"alt_port_num": 256}, "8 bits"),
        ({"alt_pkey_index": 1 << 16}, "16 bits"),
    ):  # fmt: skip
        with pytest.raises(BadArgument, match=said) as caught:
            plain_attributes({**ALT, **wrong})
        assert caught.value.remedy, wrong
    address = {"dgid": "fe80::1", "static_rate": "25_gbps"}
    plain = plain_attributes({**ALT, "alt_ah_attr": address})["alt_ah_attr"]
    assert plain == {"dgid": b"\xfe\x80" + bytes(13) + b"\1", "static_rate": 15, "port_num": 1}


def test_migration_states():
    for state in MigrationState:
        for said in (state, int(state), state.name, f"ibv_mig_{state.name.lower()}"):
            assert plain_attributes({"path_mig_state": said}) == {"path_mig_state": int(state)}
    for wrong in (3, -1, "armd", None):
        with pytest.raises(BadArgument, match="ARMED") as caught:
            plain_attributes({"path_mig_state": wrong})
        assert caught.value.value == f"path_mig_state={wrong!r}"


# ---- the emulated world


@pytest.fixture(params=[True, False], ids=["RoCE", "InfiniBand"])
def pair(request):
    world = rdmakit.World(hosts=2, roce=request.param)
    return connected_pair(world.open(0), world.open(1))


def test_emulated_devices_refuse_what_they_do_not_model(pair):
    near, far = pair
    for attributes, said in ((ALT, "alternate paths"), ({"path_mig_state": "REARM"}, "path_mig_state 1"),
                             ({"path_mig_state": "armed"}, "path_mig_state 2")):  # fmt: skip
        with pytest.raises(NotAvailable, match=said) as caught:
            near.modify("RTS", **attributes)
        assert "leave it out" in caught.value.remedy and near.state is QPState.RTS
    assert near.modify("RTS", path_mig_state="MIGRATED").query()["path_mig_state"] == MigrationState.MIGRATED
    for rate in set(StaticRate) - {StaticRate.RATE_MAX}:
        near.modify("RESET")
        with pytest.raises(NotAvailable, match=rf"static_rate {rate:d}\b") as caught:
            near.connect(far, static_rate=rate)
        assert "port_gbps" in caught.value.remedy and near.state is QPState.INIT
    near.modify("RESET").connect(far, static_rate="max")
    assert near.query()["static_rate"] == 0
    near.post_nop()
    assert near.send_cq.wait().all_ok


def test_path_bits_are_those_of_a_lid(pair, rng):
    near, far = pair
    near.modify("RESET")
    bits = int(rng.integers(1, 128))
    if near.context.ib_port(1).link_layer == "Ethernet":
        with pytest.raises(BadArgument, match=f"src_path_bits {bits}: RoCE has no LIDs"):
            near.connect(far, src_path_bits=bits)
        return
    near.connect(far, src_path_bits=bits, sl=3)
    found = near.query()
    assert (found["src_path_bits"], found["is_global"], found["dlid"]) == (bits, 0, far.endpoint().lid)
    source, target = near.pd.register(rng.integers(0, 256, 64, np.uint8)), far.pd.register(np.full(64, 0xA5, np.uint8))
    near.post_write(source, target)
    near.send_cq.wait()
    assert np.array_equal(source.bytes, target.bytes)


def test_a_query_gives_the_address_back(pair):
    near, far = pair
    found = near.query()
    if far.context.ib_port(1).link_layer == "Ethernet":
        assert found["is_global"] == 1 and found["dgid"] == rdmakit.device.endpoint.gid_bytes(far.endpoint().gid)
    else:
        assert found["is_global"] == 0 and found["dlid"] == far.endpoint().lid
    with pytest.raises(BadArgument, match="is_global"):
        near.modify("RESET").modify("INIT", pkey_index=0, port_num=1, qp_access_flags=0).modify("RTR", is_global=2)
