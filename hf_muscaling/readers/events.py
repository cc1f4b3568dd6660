"""TensorBoard event files, read without TensorBoard: scalars and texts, every length checked, nothing executed.

A file is a sequence of records `length (uint64), crc32c of the length, data, crc32c of the data`; the data is a
protocol buffer `Event`, of which only the step and the summaries' tags, scalars and texts are taken (tensorflow's
`record_writer`, `event.proto` and `summary.proto` describe both).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import RecordError
from .files import read_bytes, refuse

CHECKED = 1 << 17  #: longer records are images, graphs and histograms: skipped, not checksummed
_FLOAT, _DOUBLE, _STRING = 1, 2, 7  #: DataType in tensorflow's types.proto


@dataclass
class Events:
    """What one event file holds: `scalars[tag] = {step: value}` (the last of a step counts) and `texts[tag]`."""

    scalars: dict[str, dict[int, float]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    truncated: bool = False

    def merge(self, later: Events) -> None:
        """Add a file written later, by the same run continued: its values replace those of the same step."""
        for tag, values in later.scalars.items():
            self.scalars.setdefault(tag, {}).update(values)
        self.texts.update(later.texts)
        self.truncated |= later.truncated


def read_events(path: Path) -> Events:
    """Parse one event file; a last record cut short (a run still writing, or killed) is left out.

    Raises RecordError for a file that is not an event file or whose checksums do not match.
    """
    data, events = read_bytes(path), Events()
    try:
        for record in _records(data, path, events):
            _read_event(record, events)
    except RecordError:
        raise
    except (ValueError, struct.error, IndexError) as error:
        refuse(path, f"it is not a TensorBoard event file ({str(error)[:60]})", "Copy it again, or move it away.")
    return events


def _records(data: bytes, path: Path, events: Events) -> Iterator[memoryview]:
    view, position, end = memoryview(data), 0, len(data)
    while position < end:
        if end - position < 12:
            events.truncated = True
            return
        length, crc = struct.unpack_from("<QI", view, position)
        if _masked_crc(view[position : position + 8]) != crc:
            refuse(path, f"the checksum at byte {position} does not match", "It is damaged or not an event file.")
        start = position + 12
        if end - start < length + 4:
            events.truncated = True
            return
        record = view[start : start + length]
        if length <= CHECKED:
            if _masked_crc(record) != struct.unpack_from("<I", view, start + length)[0]:
                refuse(path, f"the checksum of the record at byte {position} does not match", "It is damaged.")
            yield record
        position = start + length + 4


def _read_event(record: memoryview, events: Events) -> None:
    step, summaries = 0, []
    for number, value in _fields(record):
        if number == 2 and isinstance(value, int):
            step = value
        elif number == 5 and isinstance(value, memoryview):
            summaries.append(value)
    if not 0 <= step < 1 << 62:
        return
    for summary in summaries:
        for number, value in _fields(summary):
            if number == 1 and isinstance(value, memoryview):
                _read_value(value, step, events)


def _read_value(message: memoryview, step: int, events: Events) -> None:
    tag, scalar, text = "", None, None
    for number, value in _fields(message):
        if number == 1 and isinstance(value, memoryview):
            tag = bytes(value).decode("utf-8", "replace")
        elif number == 2 and isinstance(value, float):
            scalar = value
        elif number == 8 and isinstance(value, memoryview):
            scalar, text = _read_tensor(value)
    if not tag:
        return
    if text is not None:
        events.texts[tag.removesuffix("/text_summary")] = text
    elif scalar is not None:
        events.scalars.setdefault(tag, {})[step] = scalar


def _read_tensor(message: memoryview) -> tuple[float | None, str | None]:
    """The one number or string of a scalar tensor; (None, None) for anything else."""
    kind, content, numbers, texts = 0, b"", [], []
    for number, value in _fields(message):
        if number == 1 and isinstance(value, int):
            kind = value
        elif number == 4 and isinstance(value, memoryview):
            content = bytes(value)
        elif number in (5, 6):
            code = "<f" if number == 5 else "<d"
            if isinstance(value, float):
                numbers.append(value)
            elif isinstance(value, memoryview) and len(value) == struct.calcsize(code):
                numbers.append(struct.unpack(code, value)[0])
        elif number == 8 and isinstance(value, memoryview):
            texts.append(bytes(value).decode("utf-8", "replace"))
    if kind == _STRING and len(texts) == 1:
        return None, texts[0]
    if kind == _FLOAT and len(content) == 4:
        return struct.unpack("<f", content)[0], None
    if kind == _DOUBLE and len(content) == 8:
        return struct.unpack("<d", content)[0], None
    if kind in (_FLOAT, _DOUBLE) and len(numbers) == 1:
        return float(numbers[0]), None
    return None, None


def _fields(message: memoryview) -> Iterator[tuple[int, int | float | memoryview]]:
    """The fields of a protocol buffer message: number and value. Raises ValueError for anything malformed."""
    position, end = 0, len(message)
    while position < end:
        key, position = _varint(message, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            integer, position = _varint(message, position)
            yield number, integer
        elif wire in (1, 5):
            size, code = (8, "<d") if wire == 1 else (4, "<f")
            if position + size > end:
                raise ValueError("a number is cut short")
            yield number, struct.unpack_from(code, message, position)[0]
            position += size
        elif wire == 2:
            length, position = _varint(message, position)
            if length > end - position:
                raise ValueError("a field is longer than its message")
            yield number, message[position : position + length]
            position += length
        else:
            raise ValueError(f"wire type {wire} is unknown")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("an integer is cut short")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("an integer is too long")


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)  # Castagnoli's polynomial, reflected
        table.append(byte)
    return table


_TABLE = _crc_table()


def _masked_crc(data: bytes | memoryview) -> int:
    """TensorFlow's masked CRC-32C: rotated right by 15 bits, plus a constant."""
    crc, table = 0xFFFFFFFF, _TABLE
    for byte in bytes(data):
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def finite(value: float | None) -> bool:
    """Whether a scalar was logged and is a number."""
    return value is not None and math.isfinite(value)
