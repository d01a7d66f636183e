"""Recorded routing on disk: hidden states, expert indices and weights of a real model on real text.

A recording is an `.npz` (zip of `.npy`) with four arrays and one JSON text that says how it was made and
holds the SHA-256 of each array. Hidden states are FP8 with a scale per 128 channels: they become BF16 test
data, so what the rounding loses is nobody's loss. Any defect of a file is a `CorruptFile` that says which
part and what to do. Leans on NumPy, `ep.layout` (checks) and `ep.numerics` (FP8).

    metadata       uint8 [n]          JSON: format, version, num_experts, made, arrays {dtype, shape, sha256}
    hidden_q       uint8 [T, H]       float8_e4m3fn bits
    hidden_scales  float32 [T, H/128]
    topk_idx       int16 [T, K]       -1 is a masked slot
    topk_weights   float32 [T, K]
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from rdmakit.ep.layout import FP8_BLOCK, check_topk_idx, check_topk_weights
from rdmakit.ep.numerics import dequantize_fp8, quantize_fp8
from rdmakit.errors import BadArgument, CorruptFile

__all__ = ["FORMAT", "VERSION", "Recording", "Tile", "load_recording", "save_recording", "shipped"]

FORMAT = "rdmakit.routing"
VERSION = 1

_DTYPES = {"hidden_q": "uint8", "hidden_scales": "float32", "topk_idx": "int16", "topk_weights": "float32"}
_MEMBER_MAX = 1 << 30  # bytes of one array: a damaged or hostile size must not take the machine's memory
# What a damaged archive makes zipfile, zlib and NumPy raise.
_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, OSError, RuntimeError, MemoryError)
_REMEDY = "fetch the file again, or make one with tutorials/record_routing.py"


@dataclass(frozen=True)
class Tile:
    """One rank's input: BF16 `x` `[T, hidden]`, int64 `topk_idx` and float32 `topk_weights` `[T, K]`."""

    x: NDArray[Any]
    topk_idx: NDArray[np.int64]
    topk_weights: NDArray[np.float32]


@dataclass(frozen=True)
class Recording:
    """A loaded recording: T tokens of H channels, top-K of `num_experts`.

    `hidden_q`: float8_e4m3fn `[T, H]`; `hidden_scales`: float32 `[T, H/128]`; `topk_idx`: int64 `[T, K]`;
    `topk_weights`: float32 `[T, K]`; `made`: how it was made (the model, the text, the losses).
    """

    hidden_q: NDArray[Any]
    hidden_scales: NDArray[np.float32]
    topk_idx: NDArray[np.int64]
    topk_weights: NDArray[np.float32]
    num_experts: int
    made: Mapping[str, Any]

    def __repr__(self) -> str:
        tokens, hidden = self.hidden_q.shape
        return f"Recording({tokens} tokens x {hidden}, top-{self.topk_idx.shape[1]} of {self.num_experts})"

    def hidden(self) -> NDArray[Any]:
        """The hidden states as BF16 `[T, H]`."""
        return dequantize_fp8(self.hidden_q, self.hidden_scales).astype(ml_dtypes.bfloat16)

    def tile(self, num_tokens: int, hidden: int, rank: int, seed: int = 0) -> Tile:
        """Rank `rank`'s input of any size, cut from the recording as from an endless tape.

        Rank r takes the tokens `[r * num_tokens, (r + 1) * num_tokens)` of the tape, whose start `seed`
        picks; at its end the tape begins again, so routing keeps the text's order and neighbours. In pass p
        over the tape a row's channels are rotated by p, and each copy that `hidden` channels need (H
        recorded ones again and again) by 31 more: values stay those of the model, yet a row differs from
        its twin in another pass or on another rank, and a copy from its neighbour, so that a misplaced row
        or chunk shows. (Rotations repeat after H passes: 10**6 tokens of the shipped recording.) `hidden`
        is a positive multiple of 128.

        >>> tile = shipped().tile(num_tokens=64, hidden=7168, rank=3)
        >>> tile.x.shape, tile.x.dtype, tile.topk_idx.shape
        ((64, 7168), dtype(bfloat16), (64, 8))
        """
        if num_tokens < 0 or rank < 0:
            raise BadArgument("num_tokens and rank are counts", value=(num_tokens, rank), rule=">= 0",
                              remedy="pass sizes, not differences")
        if hidden < 1 or hidden % FP8_BLOCK:
            raise BadArgument(f"hidden {hidden} is not a positive multiple of {FP8_BLOCK}", value=hidden,
                              rule=f"one FP8 scale covers {FP8_BLOCK}", remedy="use 128, 256, ..., 7168")
        length, width = self.hidden_q.shape
        first = int(np.random.default_rng(seed).integers(length)) + rank * num_tokens
        row = np.arange(first, first + num_tokens)
        source = self.hidden()
        x = np.empty((num_tokens, hidden), ml_dtypes.bfloat16)
        for tape_pass in range(first // length, -(-(first + num_tokens) // length)):
            here = slice(max(0, tape_pass * length - first), (tape_pass + 1) * length - first)
            rows = source[row[here] % length]
            for copy, begin in enumerate(range(0, hidden, width)):
                rotated = np.roll(rows, tape_pass + 31 * copy, axis=1)
                x[here, begin : begin + width] = rotated[:, : hidden - begin]
        row %= length
        return Tile(x, self.topk_idx[row], self.topk_weights[row])


def save_recording(path: str | os.PathLike[str], *, hidden: NDArray[np.floating],
                   topk_idx: NDArray[np.integer], topk_weights: NDArray[np.floating], num_experts: int,
                   made: Mapping[str, Any]) -> None:
    """Write a recording: `hidden` `[T, H]` of any float type, `topk_idx` and `topk_weights` `[T, K]`.

    `made` must be JSON. The file appears whole or not at all, and depends on nothing but the arguments.
    Raises `BadArgument` for bad indices or shapes, and for values that are not finite.

    >>> import tempfile
    >>> path = os.path.join(tempfile.mkdtemp(), "tiny.npz")
    >>> save_recording(path, hidden=np.ones((2, 128)), topk_idx=np.array([[0], [1]]),
    ...                topk_weights=np.ones((2, 1)), num_experts=2, made={"by": "hand"})
    >>> load_recording(path)
    Recording(2 tokens x 128, top-1 of 2)
    """
    if np.asarray(topk_idx).dtype.kind not in "iu" or np.ndim(hidden) != 2:
        raise BadArgument("topk_idx is not integer, or hidden not 2-dimensional",
                          value=(np.asarray(topk_idx).dtype, np.shape(hidden)),
                          rule="integers [T, K] and hidden states [T, H]",
                          remedy="flatten the batch to tokens")
    idx = np.ascontiguousarray(topk_idx, np.int64)
    weights = np.ascontiguousarray(topk_weights, np.float32)
    check_topk_idx(idx, num_experts, num_tokens=len(hidden))
    check_topk_weights(weights, idx)
    if len(idx) == 0 or num_experts > np.iinfo(np.int16).max:
        raise BadArgument("nothing to record, or too many experts", value=(len(idx), num_experts),
                          rule="at least one token, at most 32767 experts", remedy="record more text")
    states = np.asarray(hidden, np.float32)
    for name, array in (("hidden", states), ("topk_weights", weights)):
        if not np.isfinite(array).all():
            token = int(np.argwhere(~np.isfinite(array))[0, 0])
            raise BadArgument(f"{name} of token {token} is not finite", value=array[token], token=token,
                              rule="a recording holds finite values",
                              remedy="look for a diverged training run")
    q, scales = quantize_fp8(states)
    arrays: dict[str, NDArray[Any]] = {
        "hidden_q": q.view(np.uint8), "hidden_scales": scales, "topk_idx": idx.astype(np.int16),
        "topk_weights": weights}
    metadata = {"format": FORMAT, "version": VERSION, "num_experts": num_experts, "made": dict(made),
                "arrays": {name: _describe(array) for name, array in arrays.items()}}
    text = np.frombuffer(json.dumps(metadata, indent=1, sort_keys=True).encode(), np.uint8)
    target = pathlib.Path(path)
    partial = target.with_name(target.name + ".partial")
    with open(partial, "wb") as file:
        # No allow_pickle=False: before NumPy 2.1 that is one more array to save. mypy takes an array for it.
        np.savez_compressed(file, metadata=text, **arrays)  # type: ignore[arg-type]
    os.replace(partial, target)


def load_recording(path: str | os.PathLike[str]) -> Recording:
    """Read and verify a recording. A missing file is a `FileNotFoundError`; any defect is `CorruptFile`.

    >>> load_recording(__file__)
    Traceback (most recent call last):
    ...
    rdmakit.errors.CorruptFile: not a recording: ...
    """
    where = os.fspath(path)
    with open(path, "rb") as file:
        content = io.BytesIO(file.read())
    try:
        with zipfile.ZipFile(content) as archive:
            metadata = _read_metadata(archive, where)
            arrays = {name: _read_array(archive, name, where) for name in _DTYPES}
    except CorruptFile:
        raise
    except _DAMAGE as error:
        raise _corrupt(where, f"not a recording: {error}", rule="it is a whole zip archive") from error
    _verify(arrays, metadata, where)
    return Recording(arrays["hidden_q"].view(ml_dtypes.float8_e4m3fn), arrays["hidden_scales"],
                     arrays["topk_idx"].astype(np.int64), arrays["topk_weights"], metadata["num_experts"],
                     metadata["made"])


def shipped() -> Recording:
    """The recording that comes with rdmakit: see `rdmakit/ep/data/README.md`.

    >>> shipped().num_experts
    64
    """
    return load_recording(pathlib.Path(__file__).parent / "data" / "routing_stdlib.npz")


def _corrupt(where: str, what: str, *, rule: str, remedy: str = _REMEDY, **facts: Any) -> CorruptFile:
    return CorruptFile(what, rule=rule, remedy=remedy, path=where, **facts)


def _read_array(archive: zipfile.ZipFile, name: str, where: str) -> NDArray[Any]:
    try:
        size = archive.getinfo(f"{name}.npy").file_size
        if size > _MEMBER_MAX:
            raise _corrupt(where, f"array {name} claims to be too large", value=size,
                           rule=f"at most {_MEMBER_MAX} bytes")
        # Whole first: zipfile checks the CRC at the end only, and the header inside is not trusted before.
        raw = archive.read(f"{name}.npy")
        array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(raw), allow_pickle=False)
        return array
    except CorruptFile:
        raise
    except KeyError as error:
        raise _corrupt(where, f"array {name} is missing", rule=f"metadata, {', '.join(_DTYPES)}") from error
    except _DAMAGE as error:
        raise _corrupt(where, f"array {name} cannot be read: {error}", rule="a whole .npy") from error


def _read_metadata(archive: zipfile.ZipFile, where: str) -> dict[str, Any]:
    raw = _read_array(archive, "metadata", where)
    try:
        metadata = json.loads(raw.tobytes())
    except ValueError as error:
        raise _corrupt(where, f"the metadata is no JSON: {error}", rule="UTF-8 JSON") from error
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise _corrupt(where, "not a recording of routing", rule=f"the metadata's format is {FORMAT}")
    if metadata.get("version") != VERSION:
        raise _corrupt(where, "a recording of another version", value=metadata.get("version"),
                       rule=f"this rdmakit reads version {VERSION}",
                       remedy="use the rdmakit that wrote it, or run tutorials/record_routing.py")
    experts = metadata.get("num_experts")
    objects = [metadata.get("arrays"), metadata.get("made")]
    if type(experts) is not int or experts < 1 or not all(isinstance(item, dict) for item in objects):
        raise _corrupt(where, "the metadata lacks a field", value=sorted(metadata),
                       rule="num_experts (a positive int), arrays and made (objects)")
    return metadata


def _verify(arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Any], where: str) -> None:
    for name, array in arrays.items():
        if str(array.dtype) != _DTYPES[name] or array.ndim != 2:
            raise _corrupt(where, f"array {name} has the wrong type", value=f"{array.dtype} {array.shape}",
                           rule=f"{_DTYPES[name]}, 2 dimensions")
        said = metadata["arrays"].get(name)
        seen = _describe(array)
        if said != seen:
            raise _corrupt(where, f"array {name} is not the one that was saved", value=seen,
                           rule=f"the metadata says {said}")
    shapes = {name: array.shape for name, array in arrays.items()}
    (tokens, hidden), idx = shapes["hidden_q"], arrays["topk_idx"]
    if (tokens < 1 or hidden < FP8_BLOCK or hidden % FP8_BLOCK or len(idx) != tokens
            or shapes["topk_weights"] != idx.shape
            or shapes["hidden_scales"] != (tokens, hidden // FP8_BLOCK)):
        raise _corrupt(where, "the arrays do not belong together", value=shapes,
                       rule="hidden_q [T, H], hidden_scales [T, H/128], topk_idx and topk_weights [T, K]")
    try:
        check_topk_idx(idx.astype(np.int64), metadata["num_experts"])
    except BadArgument as error:
        raise _corrupt(where, f"bad routing: {error.what}", rule=str(error.rule), **error.facts) from error


def _describe(array: NDArray[Any]) -> dict[str, Any]:
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": digest}
