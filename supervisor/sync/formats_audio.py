"""Is a sound whole? See ``formats``.

Sources: WAV https://www.mmsp.ece.mcgill.ca/Documents/AudioFormats/WAVE/WAVE.html and RF64
EBU Tech 3306, FLAC RFC 9639 §8 and §9, Ogg RFC 3533 §6, MP3 ISO/IEC 11172-3 §2.4 and the Xing
header of LAME.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

_UNKNOWN_32 = (0, 0xFFFFFFFF, 0xFFFFFFFF - 8, 0xFFFFFFFF - 44)
# What may stand behind the audio: an ID3v1 tag, padding. More is audio nobody has counted.
_TAIL_BYTES = 4096
_FLAC_TAIL_BYTES = 1024 * 1024
_FLAC_SYNC = re.compile(rb"\xff[\xf8\xf9]")
_FLAC_BLOCKS = {1: 192, **{n: 576 << (n - 2) for n in range(2, 6)},
                **{n: 256 << (n - 8) for n in range(8, 16)}}  # fmt: skip
_OGG_PAGE_BYTES = 27
_OGG_END = 0x04
_KBPS = {
    (3, 3): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (3, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 1): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 3): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 1): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # by (MPEG version, layer) as their bits stand in the header
_HZ = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}


def wav(file: BinaryIO, size: int) -> str | None:
    """Check a WAV. A size that is unknown on purpose (a pipe) leaves only its last sample."""
    head = file.read(12)
    if head[:4] not in (b"RIFF", b"RF64"):
        return "the RIFF header is missing"
    declared = int.from_bytes(head[4:8], "little") + 8
    open_end = head[:4] == b"RF64" or declared - 8 in _UNKNOWN_32
    if not open_end and declared > size:
        return f"{declared - size} bytes of the WAV are missing"
    return _wav_samples(file, size, size if open_end else declared)


def _wav_samples(file: BinaryIO, size: int, end: int) -> str | None:
    frame_bytes, long_bytes = 1, None
    while len(head := file.read(8)) == 8:
        kind, length = head[:4], int.from_bytes(head[4:], "little")
        start = file.tell()
        if kind == b"ds64":
            long_bytes = struct.unpack("<QQ", file.read(16))[1]
        elif kind == b"fmt ":
            frame_bytes = max(1, struct.unpack("<12xH", file.read(14))[0])
        elif kind == b"data":
            if length == 0xFFFFFFFF and long_bytes:
                length = long_bytes
            counted = length not in _UNKNOWN_32
            if counted and start + length > size:
                return f"{start + length - size} bytes of the WAV are missing"
            if counted or end < size:
                # The header was written before the samples and never corrected.
                uncounted = size - max(end, start + length) > _TAIL_BYTES
                return "the WAV's header counts too few samples" if uncounted else None
            return "the last sample is cut off" if (size - start) % frame_bytes else None
        file.seek(start + length + length % 2)
    return "the WAV has no samples"


def flac(file: BinaryIO, size: int) -> str | None:
    """Check a FLAC: its last frame is whole, and is the last one that was announced."""
    head = file.read(42)  # marker, block header, STREAMINFO
    if head[:4] != b"fLaC":
        return "the FLAC marker is missing"
    if len(head) < 42 or head[4] & 0x7F != 0:
        return "the FLAC stream information is missing"
    position, last = 4, False
    while not last:
        file.seek(position)
        word = struct.unpack(">I", file.read(4))[0]
        last = bool(word >> 31)
        position += 4 + (word & 0xFFFFFF)
    if position >= size:
        return "the FLAC has no audio"
    block = int.from_bytes(head[10:12], "big")
    total = int.from_bytes(head[21:26], "big") & 0xFFFFFFFFF
    file.seek(max(position, size - _FLAC_TAIL_BYTES))
    tail = file.read()
    if tail[-128:-125] == b"TAG":
        tail = tail[:-128]
    samples = _flac_end(tail, block)
    if samples is None:
        return "the last frame of the FLAC is cut off"
    # 0: not known when the header was written, and nobody came back to tell.
    return "samples of the FLAC are missing" if samples < total else None


def _flac_end(tail: bytes, block: int) -> int | None:
    """Return how many samples there are up to a frame that ends where the tail ends."""
    for found in reversed([*_FLAC_SYNC.finditer(tail)]):
        samples = _flac_frame(tail, found.start(), block)
        if samples is not None and _crc(tail[found.start() :], _CRC16, 16) == 0:
            return samples
    return None


def _flac_frame(tail: bytes, start: int, block: int) -> int | None:
    """Return how many samples there are up to the end of the frame that may start here."""
    head = tail[start : start + 16]
    if len(head) < 16 or head[2] >> 4 == 0 or head[2] & 15 == 15:
        return None
    width = 1 if head[4] < 0x80 else 8 - (head[4] ^ 0xFF).bit_length()
    if not 1 <= width <= 7 or (width == 1 and head[4] >= 0x80):
        return None
    number = head[4] & (0x7F if width == 1 else (0x7F >> width))
    for byte in head[5 : 4 + width]:
        number = number << 6 | byte & 0x3F
    end, code = 4 + width, head[2] >> 4
    size = _FLAC_BLOCKS.get(code, 0)
    if code in (6, 7):
        size = int.from_bytes(head[end : end + code - 5], "big") + 1
        end += code - 5
    end += {12: 1, 13: 2, 14: 2}.get(head[2] & 15, 0)
    if _crc(head[: end + 1], _CRC8, 8):
        return None
    return (number if head[1] & 1 else number * block) + size


def _crc_table(polynomial: int, bits: int) -> tuple[int, ...]:
    table = []
    for value in range(256):
        crc = value << (bits - 8)
        for _ in range(8):
            crc = (crc << 1) ^ (polynomial if crc >> (bits - 1) else 0)
            crc &= (1 << bits) - 1
        table.append(crc)
    return tuple(table)


_CRC8, _CRC16 = _crc_table(0x07, 8), _crc_table(0x8005, 16)


def _crc(data: bytes, table: tuple[int, ...], bits: int) -> int:
    crc, mask, shift = 0, (1 << bits) - 1, bits - 8
    for byte in data:
        crc = (crc << 8) & mask ^ table[crc >> shift ^ byte]
    return crc


def ogg(file: BinaryIO, size: int) -> str | None:
    """Check an Ogg stream: every page is whole and the last one says that it is."""
    position, ended = 0, False
    while position < size:
        file.seek(position)
        head = file.read(_OGG_PAGE_BYTES)
        if head[:4] != b"OggS":
            break
        segments = file.read(head[26])
        position += _OGG_PAGE_BYTES + len(segments) + sum(segments)
        ended = bool(head[5] & _OGG_END)
        if len(segments) < head[26] or position > size:
            return "the last page of the Ogg is cut off"
    if position == 0:
        return "the Ogg header is missing"
    return None if ended else "the Ogg has no last page"


def mp3(file: BinaryIO, size: int) -> str | None:
    """Check an MP3: its frames follow each other to the end, and are as many as announced."""
    start = _behind_id3(file)
    position = start
    for at, length in _mp3_frames(file, start):
        if at == start and (fault := _xing(file, at, length, size)):
            return fault
        position = at + length
    # Tags may follow, but nothing that is shorter than a frame's header.
    if position > size or 0 < size - position < 4:
        return "the last frame of the MP3 is cut off"
    return "there are no MP3 frames" if position == start == size else None


def _behind_id3(file: BinaryIO) -> int:
    head = file.read(10)
    if head[:3] != b"ID3":
        return 0
    length = 0
    for byte in head[6:10]:
        length = length << 7 | byte & 0x7F
    return 10 + length


def _mp3_frames(file: BinaryIO, position: int) -> Iterator[tuple[int, int]]:
    """Yield (offset, size) of the frames that follow each other."""
    while True:
        file.seek(position)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] < 0xE0:
            return
        version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
        rates = _KBPS.get((3 if version == 3 else 2, max(layer, 1) if version == 3 else
                           3 if layer == 3 else 1))  # fmt: skip
        speed, clock = head[2] >> 4, head[2] >> 2 & 3
        if version == 1 or layer == 0 or clock == 3 or rates is None or not 0 < speed < 15:
            return  # free format, or no frame at all
        padding, bits = head[2] >> 1 & 1, rates[speed - 1] * 1000
        if layer == 3:
            length = (12 * bits // _HZ[version][clock] + padding) * 4
        else:
            halved = version != 3 and layer == 1
            length = (72 if halved else 144) * bits // _HZ[version][clock] + padding
        yield position, length
        position += length


def _xing(file: BinaryIO, at: int, length: int, size: int) -> str | None:
    """Compare what the first frame announces, if it does, with what is there."""
    file.seek(at)
    data = file.read(min(length, 256))
    found = re.search(rb"Xing|Info", data[:48])
    if found is None:
        return None
    flags = struct.unpack_from(">I", data, found.end())[0]
    if not flags & 2:
        return None
    total = struct.unpack_from(">I", data, found.end() + (8 if flags & 1 else 4))[0]
    if total == 0:
        return "it was never brought to its end"
    # Counted from the first frame, by some without it.
    return f"{at + total - size} bytes of the MP3 are missing" if at + total > size else None


__all__ = ["flac", "mp3", "ogg", "wav"]
