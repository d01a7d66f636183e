// test_network.cpp — switches, windows, PCIe, the host's proxy: each limits what it should, by as much as it says.
#include "rig.hpp"

namespace rdmakit::test {
namespace {

constexpr u64 kRate = 50'000'000'000ull;  // 400 Gb/s: 20 ps a byte

RigOptions with_clock() {
    RigOptions options;
    options.timed = true;
    options.qp.log_sq_bbs = 9;
    options.memory = 1 << 22;
    return options;
}
NetworkConfig two_pods() {
    NetworkConfig config;
    config.hosts = 4, config.nics = 2, config.ports = 2, config.hosts_per_leaf = 2, config.spines = 4;
    return config;
}
// How long `count` WRITEs of `bytes` take from the bell to the last completion.
u64 time_of(const RigOptions& options, u32 count, u32 bytes, u64* busy = nullptr) {
    Rig rig(options);
    for (u32 i = 0; i < count; ++i) rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, bytes)});
    rig.a.sender.ring();
    CHECK(rig.world.run());
    CHECK_EQ(rig.world.past_events, 0);
    if (busy != nullptr) *busy = rig.a.hca->counters().proxy_busy_ps;
    return rig.world.now_ps();
}

TEST(leaves) {
    Network net(two_pods());
    CHECK_EQ(net.leaf({0, 0, 1}), net.leaf({1, 1, 1}));
    CHECK(net.leaf({0, 0, 1}) != net.leaf({0, 0, 2}));
    CHECK(net.leaf({0, 0, 1}) != net.leaf({2, 0, 1}));
    CHECK_EQ(net.spine({0, 0, 1}, {1, 1, 1}, 0xc000), Network::kDirect);
    NetworkConfig rails = two_pods();
    rails.rails = true;
    Network railed(rails);
    CHECK(railed.leaf({0, 0, 1}) != railed.leaf({0, 1, 1}));
    CHECK_EQ(railed.leaf({0, 1, 1}), railed.leaf({1, 1, 1}));
}

TEST(one_flow_keeps_one_path_and_many_take_all) {
    Network net(two_pods());
    u32 seen = 0;
    for (u32 port = 0xc000; port < 0xc080; ++port) {
        const u32 spine = net.spine({0, 0, 1}, {2, 0, 1}, port);
        CHECK(spine < 4);
        CHECK_EQ(spine, net.spine({0, 0, 1}, {2, 0, 1}, port));
        seen |= 1u << spine;
    }
    CHECK_EQ(seen, 15);
    NetworkConfig ib = two_pods();
    ib.roce = false;
    Network lids(ib);
    CHECK_EQ(lids.spine({0, 0, 1}, {2, 0, 1}, 0), lids.spine({1, 1, 1}, {2, 0, 1}, 7));  // the destination's alone
}

TEST(a_link_takes_one_message_after_the_other) {
    Network net(two_pods());
    const u64 length = 100'000 * 20;
    const auto first = net.cross({0, 0, 1}, {2, 0, 1}, 0xc000, 100'000, 1'000, 1'000 + length);
    CHECK_EQ(first.last_ps, 1'000 + length + 2 * net.config().hop_latency_ps);
    CHECK_EQ(first.paused_until_ps, 0);
    const auto second = net.cross({0, 0, 1}, {2, 0, 1}, 0xc000, 100'000, 1'000, 1'000 + length);
    CHECK_EQ(second.last_ps, first.last_ps + length);
    const auto near = net.cross({0, 0, 1}, {1, 0, 1}, 0xc000, 100'000, 5, 10);
    CHECK_EQ(near.last_ps, 10);
    u64 bytes = 0, busy = 0;
    for (const LinkUse& use : net.links()) bytes += use.bytes, busy += use.busy_ps;
    CHECK_EQ(bytes, 400'000);  // two messages, up and down
    CHECK_EQ(busy, 4 * length);
}

TEST(adaptive_routing_takes_the_idle_spine) {
    NetworkConfig config = two_pods();
    config.adaptive = true;
    Network net(config);
    for (u32 i = 0; i < 4; ++i) {
        const auto crossing = net.cross({0, 0, 1}, {2, 0, 1}, 0xc000, 100'000, 0, 2'000'000);
        CHECK_EQ(crossing.last_ps, 2'000'000 + 2 * config.hop_latency_ps);
    }
    CHECK(net.cross({0, 0, 1}, {2, 0, 1}, 0xc000, 100'000, 0, 2'000'000).last_ps > 4'000'000);
}

TEST(a_long_queue_stops_its_feeder) {
    NetworkConfig config = two_pods();
    config.pause_threshold_bytes = 250'000;
    Network net(config);
    CHECK_EQ(net.pause_ps(250'000 * 20, kRate), 0);
    CHECK_EQ(net.pause_ps(250'000 * 20 + 7, kRate), 7);
    u64 paused = 0;
    for (u32 i = 0; i < 4; ++i)
        paused = net.cross({0, 0, 1}, {2, 0, 1}, 0xc000, 100'000, 0, 2'000'000).paused_until_ps;
    CHECK_EQ(paused, (300'000 - 250'000) * 20);
}

TEST(window_bounds_the_rate_of_a_queue_pair) {
    RigOptions options = with_clock();
    const u64 open = time_of(options, 32, 1 << 16);
    options.config.timing.qp_window_bytes = 1 << 16;  // one message at a time: a round trip each
    const u64 shut = time_of(options, 32, 1 << 16);
    const HcaTiming& t = options.config.timing;
    const u64 round_trip = 2 * t.wire_latency_ps + t.placement_ps + t.completion_ps;
    CHECK(shut > open + 31 * round_trip && shut < open + 31 * (round_trip + t.payload_fetch_ps + 2'000'000));
    options.config.timing.qp_window_bytes = 64 << 16;
    CHECK_EQ(time_of(options, 32, 1 << 16), open);
}

TEST(one_queue_pair_has_a_rate) {
    RigOptions options = with_clock();
    options.config.timing.qp_bytes_per_second = kRate / 4;
    const u64 slow = time_of(options, 32, 1 << 18);
    CHECK(slow > 31ull * (1 << 18) * 80 && slow < 33ull * (1 << 18) * 80 + 10'000'000);
}

TEST(pcie_bounds_both_ends) {
    RigOptions options = with_clock();
    const u64 free = time_of(options, 32, 1 << 18);
    options.config.timing.pcie_bytes_per_second = kRate / 2;
    const u64 bound = time_of(options, 32, 1 << 18);
    CHECK(bound > free * 19 / 10 && bound < free * 23 / 10);
    options.config.timing.pcie_bytes_per_second = 100 * kRate;
    const u64 wide = time_of(options, 32, 1 << 18);
    CHECK(wide < free + free / 50);
}

TEST(atomics_take_turns_at_the_responder) {
    RigOptions options = with_clock();
    Rig rig(options);
    for (u32 i = 0; i < 200; ++i)
        rig.a.sender.post(Opcode::fetch_add, {rig.remote(0), atomic_segment(1, 0), rig.local(0, 8)});
    rig.a.sender.ring();
    CHECK(rig.world.run());
    const u64 quick = rig.world.now_ps();
    options.config.timing.atomic_gap_ps = 1'000'000;
    Rig slow(options);
    for (u32 i = 0; i < 200; ++i)
        slow.a.sender.post(Opcode::fetch_add, {slow.remote(0), atomic_segment(1, 0), slow.local(0, 8)});
    slow.a.sender.ring();
    CHECK(slow.world.run());
    CHECK(quick < 200'000'000 && slow.world.now_ps() > 200'000'000);
    CHECK_EQ(slow.b.hca->counters().atomic_busy_ps, 200'000'000);
    CHECK_EQ(slow.b.word(0), 200);
}

TEST(a_proxy_posts_in_its_own_time) {
    RigOptions options = with_clock();
    const u64 direct = time_of(options, 100, 8);
    HcaTiming& t = options.config.timing;
    t.proxy_threads = 1, t.proxy_poll_ps = 1'500'000, t.proxy_post_ps = 250'000, t.proxy_doorbell_ps = 150'000;
    u64 busy = 0;
    const u64 relayed = time_of(options, 100, 8, &busy);
    CHECK_EQ(busy, 100 * 250'000 + 150'000);
    const u64 expected = direct + busy + 2 * t.proxy_poll_ps;  // there, and the completion back
    CHECK(relayed + 200'000 > expected && relayed < expected + 200'000);
}

// The record may be ahead of what the thread has posted: only what it has rung for counts.
TEST(a_proxy_does_not_post_what_it_has_not_read) {
    RigOptions options = with_clock();
    HcaTiming& t = options.config.timing;
    t.proxy_threads = 1, t.proxy_poll_ps = 1'000'000, t.proxy_post_ps = 40'000'000, t.proxy_doorbell_ps = 0;
    Rig rig(options);
    rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)}, kCqUpdate);
    rig.a.sender.ring();
    rig.a.sender.post(Opcode::write, {rig.remote(0), rig.local(0, 8)}, kCqUpdate);
    rig.a.sender.ring();
    CHECK(rig.world.run());
    CHECK(rig.a.send_cq.poll().there && rig.a.send_cq.poll().there);
    CHECK(rig.world.now_ps() > 81'000'000);
    CHECK_EQ(rig.a.hca->counters().proxy_busy_ps, 80'000'000);
}

// Behind a fence, a WQE whose completion is asked for, payload waits for that completion; a signal carries none, and does not.
TEST(a_proxy_that_keeps_fences_posts_payload_one_fence_after_the_other) {
    const auto span = [](bool fences, Opcode between) {
        RigOptions options = with_clock();
        HcaTiming& t = options.config.timing;
        t.proxy_threads = 1, t.proxy_poll_ps = 1'000'000, t.proxy_post_ps = 10'000, t.proxy_doorbell_ps = 0;
        t.proxy_fences = fences;
        Rig rig(options);
        for (u32 i = 0; i < 6; ++i) {
            if (i % 2 != 0 && between == Opcode::fetch_add)
                rig.a.sender.post(Opcode::fetch_add, {rig.remote(0), atomic_segment(1, 0), rig.local(0, 8)});
            else
                rig.a.sender.post(Opcode::write, {rig.remote(64), rig.local(64, 8)}, kCqUpdate);
        }
        rig.a.sender.ring();
        CHECK(rig.world.run());
        CHECK_EQ(rig.a.hca->counters().doorbells_no_progress, 0);
        return rig.world.now_ps();
    };
    HcaTiming plain = with_clock().config.timing;
    const u64 trip = 2 * plain.wire_latency_ps + plain.placement_ps + plain.completion_ps + plain.payload_fetch_ps + plain.doorbell_to_fetch_ps;
    const u64 free = span(false, Opcode::write), all = span(true, Opcode::write);
    CHECK(all > free + 5 * trip - 500'000 && all < free + 5 * trip + 500'000);  // six payloads: five wait
    const u64 some = span(true, Opcode::fetch_add), signals = span(false, Opcode::fetch_add);
    CHECK(some > signals + 2 * trip - 500'000 && some < signals + 2 * trip + 500'000);  // three: two wait
}

}  // namespace
}  // namespace rdmakit::test
