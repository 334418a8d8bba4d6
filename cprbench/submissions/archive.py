"""A .zip in memory that can be read in one way only. zlib unpacks; nothing that a header says is believed unchecked.

Members follow each other from the first byte to the central directory without gap or overlap, and both headers of each
say the same: so there are no quoted bombs, no files that other programs see, no data before or after. Layout: PKWARE's
APPNOTE 6.3, sections 4.3.7, 4.3.9, 4.3.12 and 4.3.16. Zip64 is for what is over the limits anyway.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from cprbench.errors import SubmissionError
from cprbench.submissions.strict import shown

MOST_ARCHIVE_BYTES, MOST_RATIO = 50_000_000, 200
#: What any member may unpack to: work.jsonl of equally long texts is one line again and again, a thousandth packed.
_ALWAYS_BYTES = 1_000_000
_MOST_MEMBERS = 10_000
_CHUNK = 1 << 18
_LOCAL, _CENTRAL, _END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")
_SIZES = struct.Struct("<3L")
_STORED, _DEFLATED, _NOTHING_DEFLATED = 0, 8, 2
_NEEDED = 20  # the version of the format that knows these two
_LEVEL, _SIZES_AFTER, _UTF8 = 0b110, 0b1000, 0x800  # the flags that may be set


@dataclass(frozen=True)
class Member:
    """One file, or folder (its name ends in a slash). `start`: of its data; sizes in bytes."""

    method: int
    crc: int
    packed: int
    size: int
    start: int


class Archive:
    """The members of a .zip by name, in the order of their data. Raises SubmissionError."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data, self._where = data, where
        self.members: dict[str, Member] = {}
        end = len(data) - _END.size
        if end < 0 or data[end : end + 4] != b"PK\5\6":
            self._refuse("it does not end as a .zip without a comment does")
        _, disk, first_disk, here, count, length, start, comment = _END.unpack_from(data, end)
        if disk or first_disk or comment or here != count or start + length != end:
            self._refuse("its last record does not fit it (data after it, parts, zip64 or a comment)")
        if count > _MOST_MEMBERS:
            self._refuse(f"it has {count:,} members, over {_MOST_MEMBERS:,}")
        at, found = start, []
        for _ in range(count):
            if at + _CENTRAL.size > end or data[at : at + 4] != b"PK\1\2":
                self._refuse("its directory is cut off")
            head = _CENTRAL.unpack_from(data, at)
            name_end = at + _CENTRAL.size + head[10]
            found.append((head[16], data[at + _CENTRAL.size : name_end], head))
            at = name_end + head[11] + head[12]
        if at != end:
            self._refuse("its directory does not fill its place")
        at = 0
        for offset, name, head in sorted(found):
            if offset != at:
                self._refuse(f"data lie before, between or under its members, at byte {min(at, offset)}")
            at = self._add(name, head, start)
        if at != start:
            self._refuse(f"data lie between its members and its directory, at byte {at}")

    def pieces(self, name: str) -> Iterator[bytes]:
        """Yield a member's content. Raises SubmissionError for damage, a wrong size or CRC, and a bomb."""
        member = self.members[name]
        crc = size = 0
        for piece in self._unpacked(member, name):
            size += len(piece)
            if size > member.size:
                self._refuse(f"{shown(name)} unpacks to more than the {member.size:,} bytes that it says")
            if size > max(MOST_RATIO * member.packed, _ALWAYS_BYTES):
                self._refuse(f"{shown(name)} unpacks to over {MOST_RATIO} times its packed size")
            crc = zlib.crc32(piece, crc)
            yield piece
        if (size, crc) != (member.size, member.crc):
            self._refuse(f"{shown(name)} is damaged: its size or CRC is another one")

    def _unpacked(self, member: Member, name: str) -> Iterator[bytes]:
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            for at in range(member.start, member.start + member.packed, _CHUNK):
                rest = self._data[at : min(at + _CHUNK, member.start + member.packed)]
                if member.method == _STORED:
                    yield rest
                    continue
                while (piece := inflater.decompress(rest, _CHUNK)) or inflater.unconsumed_tail:
                    yield piece
                    rest = inflater.unconsumed_tail
                if inflater.unused_data or (inflater.eof and at + _CHUNK < member.start + member.packed):
                    self._refuse(f"{shown(name)} has data after its end")
        except zlib.error as error:
            self._refuse(f"{shown(name)} is damaged ({error})")
        if member.method == _DEFLATED and not inflater.eof:
            self._refuse(f"{shown(name)} is cut off")

    def _add(self, raw: bytes, head: tuple[int, ...], directory: int) -> int:
        """Take the member with this entry of the directory, at `directory`; return where its data end."""
        _, _, needed, flags, method, _, _, crc, packed, size, _, _, _, disk, _, attributes, offset = head
        name = raw.decode("ascii", "backslashreplace")  # no name of a submission's file holds a backslash
        if name in self.members:
            self._refuse(f"{shown(name)} is there twice")
        if flags & ~(_LEVEL | _SIZES_AFTER | _UTF8) or method not in (_STORED, _DEFLATED) or needed > _NEEDED:
            how = f"method {method} of version {needed}, flags {flags:#x}"
            self._refuse(f"{shown(name)} is encrypted, or packed by {how}")
        if stat.S_IFMT(attributes >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR) or disk:
            self._refuse(f"{shown(name)} is a link, pipe or device")
        if name.endswith("/") and (size or packed > _NOTHING_DEFLATED):
            self._refuse(f"{shown(name)} is a folder that holds data")
        start = offset + _LOCAL.size + len(raw)
        if start > directory:
            self._refuse(f"{shown(name)} is cut off")
        local = _LOCAL.unpack_from(self._data, offset)
        sizes = (0, 0, 0) if flags & _SIZES_AFTER else (crc, packed, size)
        said = (local[0], *local[2:4], *local[6:10], self._data[offset + _LOCAL.size : start])
        if said != (b"PK\3\4", flags, method, *sizes, len(raw), raw):
            self._refuse(f"{shown(name)}: its two headers say different things, or it is of zip64")
        start += local[10]
        end: int = start + packed
        if flags & _SIZES_AFTER:
            end += 4 * (self._data[end : end + 4] == b"PK\7\x08") + _SIZES.size
            if self._data[end - _SIZES.size : end] != _SIZES.pack(crc, packed, size):
                self._refuse(f"{shown(name)}: what follows it says another size or CRC")
        self.members[name] = Member(method, crc, packed, size, start)
        return end

    def _refuse(self, why: str) -> NoReturn:
        raise SubmissionError(f"{self._where}: {why}. Zip the folder again with `cprbench pack`, or submit the folder.")
