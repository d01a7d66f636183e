// timing.hpp — the numbers of the timed HCA, in picoseconds and bytes, each with where it comes from.
// Leans on config.cuh. [published]: a datasheet or paper says so. [assumed]: a plausible value, to be calibrated.
#pragma once
#include "rdmakit/config.cuh"

namespace rdmakit::emu {

struct HcaTiming {
    // From the doorbell's arrival to the first WQE decoded: one PCIe read of the doorbell record and one of the ring,
    // which overlap in part. A NIC's PCIe read takes 0.5–1 µs (Neugebauer et al., "Understanding PCIe performance for
    // end host networking", SIGCOMM 2018); this value is of that order [assumed].
    u64 doorbell_to_fetch_ps = 900'000;
    // Gap between WQEs of one HCA [assumed: 330 million a second, as vendors quote for ConnectX-7].
    u64 wqe_gap_ps = 3'030;
    // Gap between WQEs of one QP: a single QP does not reach the HCA's rate [assumed: 20 million a second].
    u64 qp_wqe_gap_ps = 50'000;
    // Gather of the payload's first bytes from memory over PCIe: one read, as above [assumed].
    u64 payload_fetch_ps = 600'000;
    // 400 Gb/s a port [published: ConnectX-7 user manual, "Single-port 400Gb/s"; its dual-port cards have 200 a port].
    u64 port_bytes_per_second = 50'000'000'000ull;
    // Preamble 8 and inter-packet gap 12 [published: IEEE 802.3]: on the wire, in no counter.
    u64 wire_bytes_per_packet = 20;
    // NIC to NIC through one switch: 2 × serdes and MAC ≈ 300 ns [assumed], switch ≈ 300 ns cut-through [assumed].
    u64 wire_latency_ps = 600'000;
    // From a packet's last byte to its payload visible in memory (posted PCIe write) [assumed].
    u64 placement_ps = 300'000;
    // From the ACK's arrival to the CQE visible (posted PCIe write) [assumed].
    u64 completion_ps = 300'000;
    // The rest is 0, which is "without limit" or "not there", unless a preset says so (rdmakit/model): what one QP's engine
    // moves, bytes of a QP that may wait for their acknowledgement, PCIe between NIC and GPU in each direction, and the gap
    // between atomics that the HCA executes as responder.
    u64 qp_bytes_per_second = 0;
    u64 qp_window_bytes = 0;
    u64 pcie_bytes_per_second = 0;
    u64 atomic_gap_ps = 0;
    // Threads of the host that post for the GPU, which then rings no register but leaves a request in host memory; 0: GPUs
    // ring by themselves. From the request, or back from a CQE, until the other side has read it; for each WQE; for each bell.
    u32 proxy_threads = 0;
    u64 proxy_poll_ps = 0, proxy_post_ps = 0, proxy_doorbell_ps = 0;
    // The thread keeps fences by waiting: behind a WQE whose completion was asked for, it posts no other payload to that queue
    // pair before all there is complete. Signals, which carry none, do not wait.
    bool proxy_fences = false;
    // How far ahead of the clock a port may be given work, so that a batch of small WQEs needs one event [assumed].
    u64 port_lookahead_ps = 200'000;
};

}  // namespace rdmakit::emu
