# %% exercise="03.golden_bytes"
# exercise: 03.golden_bytes
def write_wqe(index, qpn, raddr, rkey, laddr, lkey, length, signalled):
    opcode, ds = 0x08, 3
    ctrl = (
        ((index & 0xFFFF) << 8 | opcode).to_bytes(4, "big")
        + (qpn << 8 | ds).to_bytes(4, "big")
        + bytes([0, 0, 0, 0x08 if signalled else 0])
        + bytes(4)
    )
    remote = raddr.to_bytes(8, "big") + rkey.to_bytes(4, "big") + bytes(4)
    data = length.to_bytes(4, "big") + lkey.to_bytes(4, "big") + laddr.to_bytes(8, "big")
    return ctrl + remote + data + bytes(16)
