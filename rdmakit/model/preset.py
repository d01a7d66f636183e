"""Preset files: a cluster described by parameters, each with unit, source and how far it can be trusted.

A preset is text, a statement a line:

    title: H800 with ConnectX-7, InfiniBand          what it is, in one line
    include: cx7                                     another preset; what follows overrides it, so it comes first
    port_rate = 400 Gb/s [published] ConnectX-7 user manual, "Single-port 400Gb/s"

Marks: `published` (a datasheet or paper says so), `measured` (on hardware, by whom), `assumed` (plausible),
`fitted` (by `rdmakit validate --fit`, on the points that its source names). A `#` at the start of a line begins a
comment. Every error names file and line. Leans on parameters and units.
"""

from __future__ import annotations

import difflib
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rdmakit.errors import BadArgument, CorruptFile
from rdmakit.model.cluster_rules import check_cluster
from rdmakit.model.parameters import PARAMETERS, Parameter
from rdmakit.model.units import DIMENSIONS, dimension_of, in_base, in_unit, split_unit

__all__ = ["ALIASES", "Preset", "Setting", "load", "parse", "shipped"]

FOLDER = Path(__file__).parent / "presets"
SUFFIX = ".preset"
ALIASES = {"ib": "h800-cx7-ib", "roce": "h800-cx7-roce-hash"}
MARKS = ("published", "measured", "assumed", "fitted")
_HEADER = re.compile(r"(title|include):\s*(.*?)\s*$")
_STATEMENT = re.compile(r"(\w+)\s*=\s*([^\[]*?)\s*(?:\[([^\]]*)\]\s*(.*?))?\s*$")


@dataclass(frozen=True)
class Setting:
    """One parameter as a preset gives it: `value` in the base unit of its dimension, or a word."""

    parameter: Parameter
    value: float | str
    mark: str
    source: str
    where: str

    @property
    def shown(self) -> str:
        """The value as a person reads it, with its unit.

        >>> load("ib").settings["port_rate"].shown
        '400 Gb/s'
        """
        if isinstance(self.value, str):
            return self.value
        return f"{in_unit(self.value, self.parameter.unit):.6g} {self.parameter.unit}"


@dataclass(frozen=True)
class Preset:
    """A whole description: every parameter has a value. `preset["port_rate"]` is one in its base unit (ps, bytes,
    bytes a second, a second), `preset.text("lag")` a word.

    >>> ib = load("ib")
    >>> ib["port_rate"], ib.text("link_layer"), ib.ranks
    (50000000000.0, 'ib', 32)
    """

    name: str
    title: str
    settings: Mapping[str, Setting]

    def __getitem__(self, name: str) -> float:
        value = self._setting(name).value
        if isinstance(value, str):
            raise BadArgument(
                f"{name} is a word and no number",
                value=value,
                rule="numbers by preset[name]",
                remedy=f"preset.text({name!r})",
            )
        return value

    def count(self, name: str) -> int:
        """A parameter that is a whole number."""
        return round(self[name])

    def text(self, name: str) -> str:
        """A parameter that is a word."""
        value = self._setting(name).value
        if not isinstance(value, str):
            raise BadArgument(
                f"{name} is a number and no word",
                value=value,
                rule="words by preset.text(name)",
                remedy=f"preset[{name!r}]",
            )
        return value

    def _setting(self, name: str) -> Setting:
        if name not in self.settings:
            raise _as_argument(_unknown(name, f"preset {self.name}"))
        return self.settings[name]

    @property
    def ranks(self) -> int:
        return self.count("hosts") * self.count("gpus_per_host")

    @property
    def nics(self) -> int:
        """Of a host."""
        return max(1, math.ceil(self.count("gpus_per_host") * self["nics_per_gpu"]))

    def changed(self, **values: float | int | str) -> Preset:
        """The same cluster with some parameters changed, numbers in the parameter's own unit (`Parameter.unit`) or
        text as a preset has it. BadArgument for what makes no cluster.

        >>> load("ib").changed(hosts=8, port_rate="200 Gb/s").ranks
        64
        """
        settings = dict(self.settings)
        for name, given in values.items():
            if name not in PARAMETERS:
                raise _as_argument(_unknown(name, "the change"))
            parameter = PARAMETERS[name]
            if isinstance(given, np.generic):
                given = given.item()  # as Python writes it
            written = f"{given!r} {parameter.unit}" if not isinstance(given, str) and parameter.unit else str(given)
            where = f"{self.name} with {name} changed"
            try:
                value = _value(parameter, written, where)
            except CorruptFile as error:
                raise _as_argument(error) from None
            settings[name] = Setting(parameter, value, "assumed", "changed by hand", where)
        found = Preset(self.name, self.title, settings)
        try:
            check_cluster(found)
        except CorruptFile as error:
            raise _as_argument(error) from None
        return found

    def for_ranks(self, ranks: int) -> Preset:
        """The same cluster with as many hosts as `ranks` need. BadArgument where hosts would not be full."""
        each = self.count("gpus_per_host")
        if ranks < 1 or (ranks % each and ranks > each):
            raise BadArgument(
                f"{ranks} ranks do not fill hosts",
                value=ranks,
                rule=f"a multiple of {each} GPUs a host",
                remedy=f"take {max(1, ranks // each) * each}, or change gpus_per_host",
            )
        if ranks < each:
            return self.changed(hosts=1, gpus_per_host=ranks)
        return self.changed(hosts=ranks // each)

    @property
    def host(self) -> str:
        """What one host has, in words.

        >>> load("ib").host
        '8 GPUs, 8 NICs of 1 x 400 Gb/s ib'
        """
        rate, gpus = self.settings["port_rate"].shown, self.count("gpus_per_host")
        bond = {"none": "", "hash": ", bonded (hash)", "affinity": ", bonded (affinity)"}[self.text("lag")]
        return (
            f"{gpus} GPU{'s' * (gpus != 1)}, {self.nics} NIC{'s' * (self.nics != 1)} of {self.count('ports')} x {rate} "
            f"{self.text('link_layer')}{bond}"
        )

    def __str__(self) -> str:
        hosts = self.count("hosts")
        return f"{self.name}: {hosts} host{'s' * (hosts != 1)} of {self.host}"


# ---- reading ---------------------------------------------------------------------------------------------------
def shipped() -> tuple[str, ...]:
    """Names that `load` knows without a path, aliases included.

    >>> {"roce", "ib"} <= set(shipped())
    True
    """
    whole = [path.stem for path in FOLDER.glob("*" + SUFFIX) if not path.stem.startswith("part-")]
    return tuple(sorted([*whole, *ALIASES]))


def load(name: str | Path) -> Preset:
    """A preset by its shipped name or alias, or by the path of a file. BadArgument, or CorruptFile with the line."""
    if not isinstance(name, str | Path):
        raise BadArgument("no name of a preset", value=name, rule="text, or a path", remedy='for example load("ib")')
    if str(name) not in shipped() and (Path(name).suffix == SUFFIX or os.path.isfile(name)):
        path = Path(name)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise BadArgument(
                "the preset cannot be read",
                value=str(path),
                rule=str(error),
                remedy="rdmakit plan --presets lists what is shipped",
            ) from error
        return parse(text, path.stem, str(path))
    known = ALIASES.get(str(name), str(name))
    if known not in {p.stem for p in FOLDER.glob("*" + SUFFIX)}:
        near = difflib.get_close_matches(str(name), shipped(), 1)
        raise BadArgument(
            "no such preset",
            value=str(name),
            rule="one of " + ", ".join(shipped()),
            remedy=f"{near[0]!r}?" if near else "or the path of a .preset file",
        )
    path = FOLDER / (known + SUFFIX)
    return parse(path.read_text(encoding="utf-8"), known, path.name)


def parse(text: str, name: str = "preset", where: str = "") -> Preset:
    """A preset from its text. CorruptFile names the line of whatever is wrong: a missing or wrong unit, an unknown
    parameter, no source, a rate of zero, more ports than the device has, a parameter that nobody sets.
    """
    where = where or name
    settings: dict[str, Setting] = {}
    title = _read(text, where, settings, ())
    missing = [p for p in PARAMETERS if p not in settings]
    if missing:
        raise CorruptFile(
            f"{where} leaves out {len(missing)} parameters",
            value=", ".join(missing[:6]),
            rule="every parameter has a value",
            remedy="include: h800-cx7-ib, or another whole preset, and set what is different",
        )
    found = Preset(name, title or name, settings)
    check_cluster(found)
    return found


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip()


def _read(text: str, where: str, settings: dict[str, Setting], above: tuple[str, ...]) -> str:
    """Statements into `settings`; returns the title. `above`: presets that include this one."""
    title, included, seen = "", "", dict[str, str]()
    for number, line in _lines(text):
        place = f"{where}:{number}"
        header = _HEADER.match(line)
        if header and header[1] == "include":
            if seen.keys() - {"title"}:
                raise CorruptFile(
                    f"{place}: an include behind statements, which it would override",
                    value=header[2],
                    rule="includes come first",
                    remedy="move this line up",
                )
            included = _include(header[2], place, settings, above) or included
            continue
        if header:
            name, title = "title", header[2]
        else:
            setting = _statement(line, place)
            name = setting.parameter.name
            settings[name] = setting
        if name in seen:
            raise CorruptFile(
                f"{place}: {name} is set twice",
                rule=f"once a file; first at {seen[name]}",
                remedy="take one of them out",
            )
        seen[name] = place
    return title or included


def _include(name: str, place: str, settings: dict[str, Setting], above: tuple[str, ...]) -> str:
    path = FOLDER / (ALIASES.get(name, name) + SUFFIX)
    if name in above:
        raise CorruptFile(
            f"{place}: {name} includes itself",
            value=" → ".join((*above, name)),
            rule="includes have no cycle",
            remedy="take this line out",
        )
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*" + SUFFIX)))
        raise CorruptFile(
            f"{place}: no preset to include", value=name, rule=f"one of {known}", remedy="correct the name"
        )
    return _read(path.read_text(encoding="utf-8"), path.name, settings, (*above, name))


def _statement(line: str, place: str) -> Setting:
    found = _STATEMENT.match(line)
    if not found:
        raise CorruptFile(
            f"{place}: no statement",
            value=line[:60],
            rule="name = value unit [mark] source",
            remedy="or title: …, include: …, # …",
        )
    name, written, mark, source = found.groups()
    if name not in PARAMETERS:
        raise _unknown(name, place)
    words = len(written.split())
    value = _value(PARAMETERS[name], written, place) if mark is not None or words < 3 else math.nan
    if mark not in MARKS:
        raise CorruptFile(
            f"{place}: {name} does not say how far it can be trusted",
            value=mark,
            rule="[" + "], [".join(MARKS) + "]",
            remedy="write one of them behind the unit",
        )
    if not source:
        raise CorruptFile(
            f"{place}: {name} has no source",
            rule="where the value comes from, or why it is assumed",
            remedy="write it behind the mark",
        )
    return Setting(PARAMETERS[name], value, mark, source, place)


def _value(parameter: Parameter, written: str, place: str) -> float | str:
    """What a preset's text says, in the base unit. CorruptFile says what is wrong with it."""
    name = parameter.name
    if parameter.choices:
        if written not in parameter.choices:
            raise CorruptFile(
                f"{place}: {name} cannot be that", value=written, rule=parameter.rule, remedy="choose one"
            )
        return written
    number, unit = split_unit(written)
    if not unit:
        digits = re.match(r"[\d.]+", number, re.ASCII)
        raise CorruptFile(
            f"{place}: {name} has no unit",
            value=written,
            rule=_units(parameter),
            remedy=f"for example {name} = {digits[0] if digits else 1} {parameter.unit}",
        )
    if dimension_of(unit) != dimension_of(parameter.unit):
        raise CorruptFile(
            f"{place}: {name} is in a wrong unit",
            value=unit,
            rule=_units(parameter),
            remedy=f"write it in {parameter.unit}",
        )
    try:
        value = in_base(float(number), unit)
    except ValueError:
        value = math.nan
    shown = in_unit(value, parameter.unit)
    inside = parameter.least <= shown <= parameter.most
    if not inside or math.isinf(value) or (parameter.whole and shown != int(shown)):
        raise CorruptFile(
            f"{place}: {name} makes no cluster", value=written, rule=parameter.rule, remedy=parameter.meaning
        )
    return value


def _units(parameter: Parameter) -> str:
    dimension = dimension_of(parameter.unit)
    assert dimension is not None
    return "one of " + ", ".join(DIMENSIONS[dimension])


def _unknown(name: str, place: str) -> CorruptFile:
    near = difflib.get_close_matches(name, PARAMETERS, 1)
    return CorruptFile(
        f"{place}: no parameter of that name",
        value=name,
        rule="rdmakit plan --parameters lists them",
        remedy=f"{near[0]}?" if near else "take it out",
    )


def _as_argument(error: CorruptFile) -> BadArgument:
    """The same, where no file is to blame."""
    return BadArgument(error.what, value=error.value, rule=error.rule, remedy=error.remedy)
