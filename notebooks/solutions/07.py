# %% exercise="07.queue_of"
# exercise: 07.queue_of
mine = r"""
RDMAKIT_DEVICE u32 queue_of(u32 warp, u32 pool, u32 ports) {
    const u32 each = pool / ports;  // queue pairs of one port
    const u32 port = warp % ports;  // neighbours take different ports
    return port * each + warp / ports % each;
}
"""
