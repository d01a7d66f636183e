"""Four planes: few flows for each port, and few for each link. What a plan must still reach; and credits, which are no
payload."""

import numpy as np
import pytest

from rdmakit.errors import BadArgument
from rdmakit.model import load
from rdmakit.model.plan import make_plan
from rdmakit.model.workload import sized_for

PLANES = "h800-cx7-roce-4plane"
SEEDS = range(3)  # places on the recording


def traffic_of(preset, channels, seed, routing="recorded"):
    work = sized_for(preset, "normal", "dispatch", routing=routing, channels=channels, tokens=1024, seed=seed)
    return work.traffic()


@pytest.mark.parametrize("ranks", [32, 64])
@pytest.mark.parametrize("channels", [4, 10, 12, 16])
def test_links_and_ports_are_even(ranks, channels):
    preset = load(PLANES).for_ranks(ranks)
    blind = make_plan(preset, channels=channels)
    links = blind.spine_bytes[blind.spine_bytes > 0]
    assert links.max() - links.min() <= 1, "flows of equal size: no link has two more than another"
    for seed in SEEDS:
        traffic = traffic_of(preset, channels, seed)
        known, loaded = make_plan(preset, channels=channels, traffic=traffic), blind.carrying(traffic)
        assert loaded.spine_max_over_mean <= 1.25 and known.spine_max_over_mean <= 1.17
        assert known.port_max_over_min <= 1.15
        if channels > 4 and channels % 4 == 0:
            assert loaded.port_max_over_min <= 1.15 and not loaded.audit()


def test_ports_are_even_where_batches_are_like_any_others():
    for seed in SEEDS:
        preset = load(PLANES)
        plan = make_plan(preset, channels=12).carrying(traffic_of(preset, 12, seed, "uniform"))
        assert plan.port_max_over_min <= 1.1


def test_channels_left_over_differ_by_one_flow_and_the_rest_keep_their_ports():
    preset = load(PLANES).for_ranks(64)
    plan = make_plan(preset, channels=10)
    assert plan.port_bytes.max() - plan.port_bytes.min() <= 1
    f = plan.flows
    assert all(len(set(f["port"][(f["rank"] == 5) & (f["channel"] == c)])) == 1 for c in range(8))


def test_an_audit_names_channels_that_ports_divide():
    preset = load(PLANES)
    plan = make_plan(preset).carrying(traffic_of(preset, 10, 0))  # 30 flows of a NIC: two ports have 7, two have 8
    assert plan.port_max_over_min >= 8 / 7
    assert len(plan.audit()) == 1 and "12 channels, which 4 ports divide" in plan.audit()[0]


@pytest.mark.parametrize("name", ["roce", PLANES])
@pytest.mark.parametrize("channels", [3, 4, 10])
def test_credits_weigh_nothing_and_go_the_ways_of_the_data(name, channels):
    preset = load(name)
    alone, both = make_plan(preset, channels=channels), make_plan(preset, channels=2 * channels, data=channels)
    for rank, peer, channel in ((0, 8, 0), (9, 17, channels - 1)):
        for way in ("port", "source_port", "spine"):
            seen = {getattr(both.flow(rank, peer, c), way) for c in (channel, channel + channels)}
            assert seen == {getattr(alone.flow(rank, peer, channel), way)}
    traffic = traffic_of(preset, channels, 0)
    with_credits = both.carrying(np.concatenate([traffic, np.zeros_like(traffic)], axis=2))
    assert with_credits.spine_max_over_mean == alone.carrying(traffic).spine_max_over_mean
    assert with_credits.port_max_over_min == alone.carrying(traffic).port_max_over_min


@pytest.mark.parametrize("data", [0, 11, -1, 2.0])
def test_channels_of_payload_that_are_refused(data):
    with pytest.raises(BadArgument, match="channels of payload make no plan"):
        make_plan(load("roce"), channels=10, data=data)
