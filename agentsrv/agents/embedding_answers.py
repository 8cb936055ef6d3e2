"""Parses the vectors that an embedding endpoint sends."""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Sequence
from typing import Any, Final

from agentsrv.agents.endpoint_errors import load, nonsense, reported, reported_or
from agentsrv.errors import ModelError

MAX_VECTORS: Final = 32 << 20  # bytes of an answer with vectors
MAX_FLOAT32: Final = 3.4028234663852886e38  # the largest 32-bit number; vectors are stored as such


def read_vectors(body: bytes, count: int) -> list[list[float]]:
    """Return ``count`` vectors from the answer of an embedding endpoint, in the order of the texts.

    Entries may lack ``index`` (then their position counts), be nested in a list of one, or be
    base64 of 32-bit numbers; the document may be the list itself.

    Raises:
        ModelError: The answer is not ``count`` vectors of finite numbers of one dimension.
    """
    document = load(body)
    if isinstance(document, dict) and document.get("error"):
        raise reported(document)
    data = document.get("data") if isinstance(document, dict) else document
    if not isinstance(data, list):
        raise reported_or("no list of vectors", document)
    if len(data) != count:
        raise ModelError(
            f"the embedding endpoint sent {len(data)} vectors for {count} texts; expected one each"
        )
    placed: dict[int, list[float]] = {}
    for number, entry in enumerate(data):
        index = entry.get("index", number) if isinstance(entry, dict) else number
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < count:
            raise nonsense("a vector with an index out of range", index)
        placed[index] = _vector(entry.get("embedding") if isinstance(entry, dict) else entry)
    if len(placed) != count:
        raise ModelError("the embedding endpoint sent two vectors with the same index")
    vectors = [placed[place] for place in range(count)]
    sizes = {len(vector) for vector in vectors}
    if len(sizes) > 1:
        raise ModelError(
            f"the embedding endpoint sent vectors of {sorted(sizes)[:3]} numbers, which cannot be "
            "compared; expected one dimension"
        )
    return vectors


def _vector(value: Any) -> list[float]:
    if isinstance(value, str):
        try:
            packed = base64.b64decode(value, validate=True)
            value = list(struct.unpack(f"<{len(packed) // 4}f", packed))
        except (binascii.Error, struct.error, ValueError):
            raise ModelError("the embedding endpoint sent a vector that is not base64") from None
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    if not isinstance(value, list) or not value or not _are_numbers(value):
        raise ModelError(
            "the embedding endpoint sent vectors that cannot be compared; expected lists of finite "
            "numbers"
        )
    return [*map(float, value)]


def _are_numbers(value: Sequence[Any]) -> bool:
    if not {*map(type, value)} <= {int, float}:
        return False
    # Comparisons with NaN are false, so min and max may miss it; a sum with NaN is NaN.
    return min(value) >= -MAX_FLOAT32 and max(value) <= MAX_FLOAT32 and math.isfinite(sum(value))
