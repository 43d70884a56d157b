"""Bytes of the file formats that FFmpeg does not write as we need them: animated WebP, GIF comments, PNG text."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from ..errors import LeanVideoError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_EXIF_MODEL, _EXIF_MAKE = 0x0110, 0x010F


class WebPFile:
    """An animated WebP written front to back (WebP Container Specification: VP8X, ANIM, ANMF..., EXIF).

    `loop_count` is how often the clip plays, 0 for ever. Raises OSError as the file does, LeanVideoError beyond 4 GiB.
    """

    def __init__(self, path: Path, size: tuple[int, int], loop_count: int, alpha: bool, metadata: Mapping[str, str]) -> None:
        self._size = size
        self._exif = exif_text(metadata)
        self._file = path.open("r+b")
        flags = 0x02 | (0x10 if alpha else 0) | (0x08 if self._exif else 0)
        self._file.write(b"RIFF\0\0\0\0WEBP")
        self._chunk(b"VP8X", bytes([flags, 0, 0, 0]) + _u24(size[0] - 1) + _u24(size[1] - 1))
        self._chunk(b"ANIM", struct.pack("<IH", 0, min(loop_count, 65535)))

    def add(self, still: bytes, milliseconds: int) -> None:
        """Append the picture of a still WebP file of the same size, shown for `milliseconds`."""
        picture = b"".join(_padded_chunk(name, body) for name, body in _riff_chunks(still) if name in (b"ALPH", b"VP8 ", b"VP8L"))
        replace_do_not_blend = 0x02
        header = _u24(0) + _u24(0) + _u24(self._size[0] - 1) + _u24(self._size[1] - 1) + _u24(milliseconds) + bytes([replace_do_not_blend])
        self._chunk(b"ANMF", header + picture)

    def finish(self) -> None:
        if self._exif:
            self._chunk(b"EXIF", self._exif)
        length = self._file.tell()
        if length > 0xFFFFFFFE:
            raise LeanVideoError("The animated WebP would be larger than 4 GiB, which the format cannot hold: make a shorter clip or choose another format.")
        self._file.seek(4)
        self._file.write(struct.pack("<I", length - 8))
        self._file.close()

    def abort(self) -> None:
        import contextlib

        # Closing flushes, so a full disk is met here once more; the handle is closed all the same.
        with contextlib.suppress(OSError):
            self._file.close()

    def _chunk(self, name: bytes, body: bytes) -> None:
        self._file.write(_padded_chunk(name, body))


class GifComments:
    """Comment extensions "key:value" for a GIF."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._blocks = b"".join(self._extension(f"{key}:{value}".encode()) for key, value in metadata.items())

    def append_to(self, path: Path) -> None:
        """Put them before the trailer of the finished GIF at `path`."""
        if not self._blocks:
            return
        with path.open("r+b") as file:
            file.seek(-1, 2)
            file.write(self._blocks + b"\x3b")

    @staticmethod
    def _extension(text: bytes) -> bytes:
        blocks = (text[start : start + 255] for start in range(0, len(text), 255))
        return b"\x21\xfe" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"


def png_with_text(png: bytes, metadata: Mapping[str, str]) -> bytes:
    """The PNG file with each metadata entry as a tEXt chunk after its header, or iTXt where Latin-1 cannot hold it."""
    after_header = 8 + 25  # signature and IHDR
    chunks = b""
    for key, value in metadata.items():
        keyword = key.encode("latin-1", "replace")[:79]
        try:
            name, body = b"tEXt", keyword + b"\0" + value.encode("latin-1")
        except UnicodeEncodeError:
            name, body = b"iTXt", keyword + b"\0\0\0\0\0" + value.encode()
        chunks += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return png[:after_header] + chunks + png[after_header:]


def exif_text(metadata: Mapping[str, str]) -> bytes:
    """EXIF as ComfyUI's page reads it: "prompt:..." as the camera's model, then every other key as its make and the tags below. Empty without metadata.

    Written as a little-endian TIFF header and one directory of ASCII fields (TIFF 6.0, section 2).
    """
    tags: dict[int, bytes] = {}
    spare = _EXIF_MAKE
    for key, value in metadata.items():
        tag = _EXIF_MODEL if key == "prompt" else spare
        spare -= tag == spare
        tags[tag] = f"{key}:{value}".encode() + b"\0"
    if not tags:
        return b""
    offset = 8 + 2 + 12 * len(tags) + 4
    entries, texts = b"", b""
    for tag, text in sorted(tags.items()):
        where = text.ljust(4, b"\0") if len(text) <= 4 else struct.pack("<I", offset + len(texts))
        entries += struct.pack("<HHI", tag, 2, len(text)) + where
        texts += text if len(text) > 4 else b""
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + texts


def _riff_chunks(riff: bytes) -> list[tuple[bytes, bytes]]:
    chunks: list[tuple[bytes, bytes]] = []
    position = 12
    while position + 8 <= len(riff):
        length = struct.unpack_from("<I", riff, position + 4)[0]
        chunks.append((riff[position : position + 4], riff[position + 8 : position + 8 + length]))
        position += 8 + length + length % 2
    return chunks


def _padded_chunk(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def _u24(value: int) -> bytes:
    return struct.pack("<I", value)[:3]
