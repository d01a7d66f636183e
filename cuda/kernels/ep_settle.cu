// ep_settle.cu — before rings are divided into slots of another size: waits until all that this rank has sent through them has
// been taken, there and here. One block.
#include <rdmakit/ep.cuh>

RDMAKIT_KERNEL ep_settle(const rdmakit::EpRank* rank) {
    using namespace rdmakit;
    const EpRank& ep = *rank;
    for (u32 i = static_cast<u32>(block_rank()); i < ep.hosts * ep.channels; i += static_cast<u32>(block_size())) {
        if (i / ep.channels == ep.host) continue;
        const ChannelHandle& c = ep.rails[i];
        if (!check_handle(c.qp)) return;
        const u64 sent = *c.sent;
        u64 head = 0;
        const Subject who{"credit for all that was sent", sent, c.qp.qpn, c.qp.peer, c.qp.channel};
        if (wait_signal(c.head, sent, ep.watch, who, &head) != Status::ok) return;
    }
}
