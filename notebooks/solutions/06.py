# %% exercise="06.steer"
# exercise: 06.steer
def planned(sizes):
    """A port for each size: the largest first, each onto the port that has less."""
    load, ports = [0, 0], [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        port = 0 if load[0] <= load[1] else 1
        load[port] += sizes[i]
        ports[i] = port + 1
    return ports


def by_affinity(qps, sizes):
    for qp, port in zip(qps, planned(sizes), strict=True):
        qp.lag_port = port


def by_source_port(qps, sizes, port_of):
    for qp, port in zip(qps, planned(sizes), strict=True):
        for sport in range(49152, 65536, 7):
            qp.udp_sport = sport
            if port_of(qp) == port:
                break
