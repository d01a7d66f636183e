"""A map of hosts, their GPUs, NICs and ports, and which links are up. Leans on `figure`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rdmakit.show.figure import MARGIN, WIDTH, Figure, legend, panel
from rdmakit.show.palette import BAD, BLUE, GOOD, ORANGE, PURPLE, SKY, ink_on
from rdmakit.show.svg import Markup, box, cross, join, label, line

_GAP = 14
_PAD = 10
_GPU_Y, _NIC_Y, _PORT_Y, _BOTTOM = 30, 104, 130, 168
_FABRIC = 26


def _up(port: Mapping) -> bool:
    return str(port.get("state", "ACTIVE")).upper() in ("ACTIVE", "UP", "PORT_ACTIVE")


def _port_name(port: Mapping) -> str:
    return str(port.get("port", port.get("name", "?")))


def _host_width(host: Mapping) -> float:
    """The room that a host would like: 78 px for a GPU, 74 for a port."""
    nics = host.get("nics", ())
    wanted = max(
        len(host.get("gpus", ())) * 84, sum(max(len(nic.get("ports", ())), 1) * 74 + 12 for nic in nics)
    )
    return min(max(wanted + 2 * _PAD, 170), WIDTH - 2 * MARGIN)


def _rows(hosts: Sequence[Mapping]) -> list[list[tuple[Mapping, float, float]]]:
    """Hosts in rows, each as ``(host, left, width)``; all are stretched alike until the fullest row fills the
    page."""
    rows: list[list[tuple[Mapping, float]]] = [[]]
    room = WIDTH - 2 * MARGIN
    for host in hosts:
        width = _host_width(host)
        if rows[-1] and sum(w + _GAP for _, w in rows[-1]) + width > room:
            rows.append([])
        rows[-1].append((host, width))
    stretch = min((room - _GAP * (len(row) - 1)) / sum(w for _, w in row) for row in rows) if rows[0] else 1.0
    stretch = min(stretch, 1.4)
    placed: list[list[tuple[Mapping, float, float]]] = []
    for row in rows:
        x = float(MARGIN)
        placed.append([])
        for host, width in row:
            placed[-1].append((host, x, width * stretch))
            x += width * stretch + _GAP
    return placed


def _host(host: Mapping, x: float, y: float, width: float) -> Markup:
    gpus = [str(gpu) for gpu in host.get("gpus", ())]
    nics = list(host.get("nics", ()))
    parts: list[str] = [panel(x, y, width, _BOTTOM, stroke="currentColor", stroke_opacity=0.35)]
    parts.append(label(x + _PAD, y + 19, host.get("name", "host"), width - 2 * _PAD, size=13, bold=True))
    inner = width - 2 * _PAD
    gpu_at: dict[str, float] = {}
    boxes: list[str] = []
    for i, gpu in enumerate(gpus):
        step = inner / len(gpus)
        left = x + _PAD + i * step
        gpu_at[gpu] = left + step / 2
        boxes.append(box(left + 2, y + _GPU_Y, step - 4, 28, GOOD, rx=4))
        boxes.append(
            label(
                left + step / 2,
                y + _GPU_Y + 18,
                gpu,
                step - 8,
                size=11,
                least=6,
                anchor="middle",
                fill=ink_on(GOOD),
            )
        )
    nic_at: dict[str, float] = {}
    for i, nic in enumerate(nics):
        step = inner / len(nics)
        left = x + _PAD + i * step
        name = str(nic.get("name", "nic"))
        nic_at[name] = left + step / 2
        boxes.append(box(left + 2, y + _NIC_Y, step - 4, 58, BLUE, rx=4))
        boxes.append(
            label(
                left + step / 2,
                y + _NIC_Y + 17,
                name,
                step - 10,
                size=11,
                least=6,
                anchor="middle",
                fill=ink_on(BLUE),
            )
        )
        boxes.append(_ports(nic, left + 4, y, step - 8))
    for gpu, nic, *how in host.get("links", ()):
        if str(gpu) not in gpu_at or str(nic) not in nic_at:
            raise ValueError(
                f"link {gpu!r}–{nic!r} names no GPU and NIC of host {host.get('name')!r}: "
                f"{list(gpu_at)}, {list(nic_at)}"
            )
        parts.append(
            _link(gpu_at[str(gpu)], y + _GPU_Y + 28, nic_at[str(nic)], y + _NIC_Y, str(how[0]) if how else "")
        )
    return join(parts + boxes)


def _link(x0: float, y0: float, x1: float, y1: float, how: str) -> Markup:
    """A line from GPU to NIC: thick within one PCIe switch (PIX, PXB), thin and dashed across the CPU."""
    near = how.upper() in ("", "PIX", "PXB")
    colour = ORANGE if near else PURPLE
    return line(
        x0, y0, x1, y1, colour, stroke_width=3 if near else 1.5, stroke_dasharray=None if near else "5 4"
    )


def _ports(nic: Mapping, left: float, y: float, width: float) -> Markup:
    ports = list(nic.get("ports", ()))
    parts: list[str] = []
    for i, port in enumerate(ports):
        step = width / len(ports)
        x, up = left + i * step, _up(port)
        fill = SKY if up else BAD
        middle = x + step / 2
        parts.append(
            box(x + 1, y + _PORT_Y - 5, step - 2, 34, fill, rx=3, stroke="#ffffff", stroke_opacity=0.5)
        )
        state = str(port.get("rate", "up")) if up else str(port.get("state", "DOWN"))
        ink = ink_on(fill)
        name = f"port {_port_name(port)} {'✓' if up else '✗'}"
        parts.append(
            label(middle, y + _PORT_Y + 8, name, step - 6, size=10.5, least=5, anchor="middle", fill=ink)
        )
        parts.append(
            label(middle, y + _PORT_Y + 23, state, step - 6, size=10, least=5, anchor="middle", fill=ink)
        )
        ends = middle, y + _PORT_Y + 29, middle, y + _BOTTOM + 24
        if up:
            parts.append(line(*ends, GOOD, stroke_width=3))
        else:
            parts.append(line(*ends, BAD, stroke_width=2, stroke_dasharray="5 4"))
            parts.append(cross(middle, y + _BOTTOM + 10, BAD))
    return join(parts)


def host_map(hosts: Sequence[Mapping], *, fabric: str = "fabric", title: str | None = None) -> Figure:
    """Draw hosts with GPUs above, NICs with their ports below, and lines to the fabric: green up, dashed with
    ✗ down.

    A host is ``{"name", "gpus": [name], "nics": [{"name", "ports": [{"port", "state", "rate"}]}], "links":
    [(gpu, nic, "PIX")]}``; every part may be absent. A link to an unknown GPU or NIC raises `ValueError`.

    >>> ports = [{"port": 1}, {"port": 2, "state": "DOWN"}]
    >>> print(host_map([{"name": "h0", "gpus": ["GPU 0"], "nics": [{"name": "mlx5_0", "ports": ports}]}]))
    1 of 2 ports down: h0 mlx5_0 port 2
    h0
      GPU 0
      mlx5_0: port 1 ACTIVE, port 2 DOWN
    """
    y, parts = 4.0, []
    for row in _rows(hosts):
        for host, left, width in row:
            parts.append(_host(host, left, y, width))
        if row:
            span = row[-1][1] + row[-1][2] - MARGIN
            parts.append(box(MARGIN, y + _BOTTOM + 24, span, _FABRIC, "#808080", fill_opacity=0.35, rx=4))
            parts.append(
                label(MARGIN + span / 2, y + _BOTTOM + 24 + 18, fabric, span - 20, size=12, anchor="middle")
            )
            y += _BOTTOM + 24 + _FABRIC + _GAP
    links = [str(how[0]) if how else "" for host in hosts for _, _, *how in host.get("links", ())]
    entries = [("GPU", GOOD), ("NIC", BLUE), ("port up ✓", SKY), ("port down ✗", BAD)]
    if any(h.upper() in ("", "PIX", "PXB") for h in links):
        entries.append(("same PCIe switch (PIX, PXB)", ORANGE))
    far = sorted({h.upper() for h in links} - {"", "PIX", "PXB"})
    if far:
        entries.append((f"farther ({', '.join(far)}, dashed)", PURPLE))
    keys, used = legend(entries, y)
    return Figure(title or _finding(hosts), join([*parts, keys]), y + used, _plain(hosts))


def _finding(hosts: Sequence[Mapping]) -> str:
    ports = [
        (host, nic, port) for host in hosts for nic in host.get("nics", ()) for port in nic.get("ports", ())
    ]
    down = [
        f"{h.get('name', 'host')} {n.get('name', 'nic')} port {_port_name(p)}"
        for h, n, p in ports
        if not _up(p)
    ]
    if down:
        named = ", ".join(down[:3]) + (f" and {len(down) - 3} more" if len(down) > 3 else "")
        return f"{len(down)} of {len(ports)} ports down: {named}"
    return f"{len(hosts)} host{'s' * (len(hosts) != 1)}, {len(ports)} port{'s' * (len(ports) != 1)}, all up"


def _plain(hosts: Sequence[Mapping]) -> str:
    lines = []
    for host in hosts:
        lines.append(str(host.get("name", "host")))
        if host.get("gpus"):
            lines.append("  " + ", ".join(str(gpu) for gpu in host["gpus"]))
        for nic in host.get("nics", ()):
            ports = ", ".join(
                f"port {_port_name(p)} {p.get('state', 'ACTIVE')}" for p in nic.get("ports", ())
            )
            lines.append(f"  {nic.get('name', 'nic')}: {ports or 'no ports'}")
        lines += [
            f"  {gpu} – {nic} {' '.join(map(str, how))}".rstrip() for gpu, nic, *how in host.get("links", ())
        ]
    return "\n".join(lines)
