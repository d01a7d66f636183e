"""RoCE v2 packets as they cross a port: UDP source port, transport opcode, destination queue pair.

By an AF_PACKET socket (man 7 packet) in the namespace that the process is in. Headers: Ethernet 14, IPv4, UDP 8, BTH 12
(IBTA vol. 1, 9.2); UDP port 4791 is RoCE v2's (annex A17).
"""

import socket
import struct
from dataclasses import dataclass

_ETH_P_ALL, _OUTGOING, _ROCE = 3, 4, 4791


@dataclass(frozen=True)
class Packet:
    source_port: int
    opcode: int
    qpn: int
    nbytes: int


class Capture:
    """What arrives at `device` from now on."""

    def __init__(self, device: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        self._socket.bind((device, 0))
        self._socket.setblocking(False)

    def packets(self) -> list[Packet]:
        """Those since the last call, oldest first."""
        found = []
        while True:
            try:
                frame, (_, _, kind, _, _) = self._socket.recvfrom(65536)
            except BlockingIOError:
                return found
            header = 14 + 4 * (frame[14] & 0xF) if len(frame) > 34 and frame[12:14] == b"\x08\x00" else 0
            if kind == _OUTGOING or not header or frame[23] != socket.IPPROTO_UDP:
                continue
            source, target = struct.unpack_from(">HH", frame, header)
            if target == _ROCE:
                opcode, qpn = frame[header + 8], int.from_bytes(frame[header + 13 : header + 16], "big")
                found.append(Packet(source, opcode, qpn, len(frame)))
