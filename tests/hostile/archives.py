"""Zips that bomb, lie, or that two programs read differently: name -> (what it is, its bytes from an honest folder)."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

Packed = Callable[[Path], bytes]
_DEVICE, _LINK = (stat.S_IFCHR | 0o600) << 16, (stat.S_IFLNK | 0o777) << 16


@dataclass(frozen=True)
class Lie:
    """A member, and what its headers say where that is not the truth."""

    name: bytes
    content: bytes
    packed: bytes | None = None  # its data where they are not the deflated content
    method: int = 8
    flags: int = 0
    attributes: int = 0
    local_name: bytes | None = None
    size: int | None = None
    local_size: int | None = None
    crc: int | None = None
    packed_size: int | None = None
    offset: int | None = None
    needed: int = 20
    before: bytes = b""  # bytes between the member before and this one
    after: bytes = b""  # bytes that follow its data, such as a descriptor


def deflated(content: bytes, ending: int = zlib.Z_FINISH) -> bytes:
    """Return raw deflate data."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(content) + packer.flush(ending)


def zip_of(members: Sequence[Lie], *, count: int | None = None, comment: bytes = b"", before_end: bytes = b"") -> bytes:
    """Return a .zip of `members`, lies included."""
    body, directory = bytearray(), bytearray()
    for m in members:
        data = m.packed if m.packed is not None else deflated(m.content) if m.method == 8 else m.content
        crc = zlib.crc32(m.content) if m.crc is None else m.crc
        size = len(m.content) if m.size is None else m.size
        packed = len(data) if m.packed_size is None else m.packed_size
        body += m.before
        offset = len(body) if m.offset is None else m.offset
        there = (0, 0, 0) if m.flags & 8 else (crc, packed, size if m.local_size is None else m.local_size)
        name = m.name if m.local_name is None else m.local_name
        body += struct.pack("<4s5H3L2H", b"PK\3\4", 20, m.flags, m.method, 0, 33, *there, len(name), 0) + name
        body += data + m.after
        said = (b"PK\1\2", 0x314, m.needed, m.flags, m.method, 0, 33, crc, packed, size, len(m.name), 0, 0, 0, 0)
        directory += struct.pack("<4s6H3L5H2L", *said, m.attributes, offset) + m.name
    counts = [len(members) if count is None else count] * 2
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, *counts, len(directory), len(body), len(comment))
    return bytes(body + directory + before_end + end + comment)


def honest(folder: Path) -> list[Lie]:
    """Return the files of a folder as members that tell the truth."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [Lie(path.relative_to(folder).as_posix().encode(), path.read_bytes()) for path in files]


def _with(*members: Lie, **parts: int | bytes) -> Packed:
    return lambda folder: zip_of([*honest(folder), *members], **parts)  # type: ignore[arg-type]


def _spec(**lies: object) -> Packed:
    """Return the zip that lies about submission.toml."""

    def packed(folder: Path) -> bytes:
        lying = {b"submission.toml": lies}
        return zip_of([replace(m, **lying.get(m.name, {})) for m in honest(folder)])  # type: ignore[arg-type]

    return packed


def _named(name: bytes) -> Packed:
    return _with(Lie(name, b"{}"))


def _edited(change: Callable[[bytes], bytes]) -> Packed:
    return lambda folder: change(zip_of(honest(folder)))


def _overlapping(folder: Path) -> bytes:
    """Return a bomb of many files that share their data: each quotes the header of the next (D. Fifield, 2019)."""
    content, length = b" " * 900_000, len(deflated(b" " * 900_000))
    chain = [Lie(b"runs/0.json", content)]
    for number in range(1, 100):
        head = zip_of(chain[:1])[: 30 + len(chain[0].name)]
        quote = struct.pack("<BHH", 0, len(head), 0xFFFF ^ len(head))  # a block of deflate that is not packed
        content, length = head + content, len(quote) + len(head) + length
        said = {"packed_size": length, "size": len(content), "crc": zlib.crc32(content)}
        chain.insert(0, Lie(b"runs/%d.json" % number, b"", packed=quote, **said))  # type: ignore[arg-type]
    return zip_of([*honest(folder), *chain])


def _zip64(folder: Path) -> bytes:
    plain = zip_of(honest(folder))
    _, _, _, _, count, length, start, _ = struct.unpack("<4s4H2LH", plain[-22:])
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, start)
    where = struct.pack("<4sLQL", b"PK\6\7", 0, len(plain) - 22, 1)
    last = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return plain[:-22] + end64 + where + last


def _tar(folder: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.add(folder, ".")
    return stream.getvalue()


def _lzma(folder: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_LZMA) as archive:
        for member in honest(folder):
            archive.writestr(member.name.decode(), member.content)
    return stream.getvalue()


_BOMB = deflated(b" " * 15_000_000)
_DESCRIPTOR = b"PK\7\x08" + struct.pack("<3L", 1, 2, 3)

ARCHIVES: dict[str, tuple[str, Packed]] = {
    "traversal": ("a name that leaves the folder", _named(b"../../evil.json")),
    "traversal-inside": ("the same further in", _named(b"runs/../../evil.json")),
    "absolute": ("a name from the root", _named(b"/etc/cron.d/evil")),
    "drive-name": ("a name with a drive", _named(b"C:/evil.json")),
    "share": ("a name of another machine", _named(b"//host/share/evil.json")),
    "backslashes": ("a name that is a path elsewhere", _named(b"..\\..\\evil.json")),
    "dot": ("a part that is a dot", _named(b"runs/./x.json")),
    "empty-part": ("a part that is nothing", _named(b"runs//x.json")),
    "nameless": ("no name", _named(b"")),
    "nul-name": ("a name that ends early elsewhere", _named(b"runs/x.json\0.exe")),
    "escape-name": ("a name that a terminal obeys", _named(b"runs/\x1b[2J.json")),
    "bidi-in-zip": ("a name that reads backwards", _with(Lie("runs/\u202enosj.json".encode(), b"{}", flags=0x800))),
    "unicode-name": ("a name in the code page of DOS", _named(b"runs/\x82.json")),
    "endless-name": ("a name of 60,000 letters", _named(b"runs/" + b"n" * 60_000 + b".json")),
    "twice": ("two files of one name", _named(b"submission.toml")),
    "twins-in-zip": ("two names that are one elsewhere", _with(Lie(b"runs/A.json", b"1"), Lie(b"runs/a.json", b"2"))),
    "file-and-folder": ("a file that is a folder as well", _with(Lie(b"submission.toml/", b"", method=0))),
    "folder-of-data": ("a folder that holds data", _with(Lie(b"runs/", b"hidden", method=0))),
    "folder-of-more": ("a folder that holds data behind its end", _with(Lie(b"runs/", b"", packed=b"\3\0hidden"))),
    "script-in-zip": ("a script", _named(b"setup.py")),
    "pickle-in-zip": ("a pickle", _named(b"runs/0123456789abcdef/model.pkl")),
    "inner-zip": ("a bomb inside, to be unpacked by the curious", _with(Lie(b"runs/0.zip", _BOMB, method=0))),
    "two-tops": ("two folders at the top", lambda f: zip_of(
        [replace(m, name=b"ab"[i % 2 :][:1] + b"/" + m.name) for i, m in enumerate(honest(f))])),
    "upwards-top": ("a top folder that is the one above", lambda f: zip_of(
        [replace(m, name=b"../" + m.name) for m in honest(f)])),
    "link-in-zip": ("a link", _with(Lie(b"README.md", b"/etc/passwd", attributes=_LINK))),
    "device-in-zip": ("a device", _with(Lie(b"README.md", b"", attributes=_DEVICE))),
    "encrypted": ("an encrypted member", _spec(flags=1)),
    "strongly-encrypted": ("the other way", _spec(flags=0x41)),
    "lzma": ("a method that takes memory", _lzma),
    "unknown-version": ("a format of the future", _spec(needed=99)),
    "unknown-method": ("a method that nobody knows", _spec(method=99)),
    "bomb": ("15 MB in 15 kB", _with(Lie(b"runs/x.json", b" " * 15_000_000, packed=_BOMB))),
    "bomb-denied": ("that say they are 10 bytes", _with(Lie(b"runs/x.json", b"", packed=_BOMB, size=10))),
    "bombs": ("many of them", lambda f: zip_of([*honest(f), *(
        Lie(b"runs/%d.json" % i, b"", packed=_BOMB, size=15_000_000) for i in range(900))])),
    "bombs-denied": ("many that say they are small", lambda f: zip_of([*honest(f), *(
        Lie(b"runs/%d.json" % i, b"", packed=_BOMB, size=10) for i in range(900))])),
    "overlapping": ("a bomb whose members share their data", _overlapping),
    "shared": ("two members at one place", lambda f: zip_of([*honest(f), Lie(b"runs/x.json", b"{}", offset=0)])),
    "size-lie": ("a size that is too small", _spec(size=10)),
    "size-lie-large": ("a size that is too large", _spec(size=16_000_000)),
    "stored-lie": ("stored, in less than it has", _spec(method=0, size=10_000)),
    "local-size": ("headers of two sizes", _spec(local_size=10)),
    "local-name": ("headers of two names", _spec(local_name=b"evilmission.toml")),
    "local-name-length": ("and lengths", _spec(local_name=b"x")),
    "descriptor": ("a size that follows, another one", _spec(flags=8, after=_DESCRIPTOR)),
    "no-descriptor": ("a size that should follow", _spec(flags=8)),
    "packed-lie": ("data that run into the next member", _spec(packed_size=5000)),
    "packed-lie-large": ("data of four gigabytes", _spec(packed_size=0xFFFFFFFE)),
    "offset-lie": ("a member behind the end", _spec(offset=0xFFFFFF00)),
    "size-zip64": ("sizes in a field that is not there", _spec(size=0xFFFFFFFF, packed_size=0xFFFFFFFF)),
    "zip64": ("a record for archives of exabytes", _zip64),
    "crc": ("data that were altered", _spec(crc=1)),
    "no-deflate": ("data that are not packed", _spec(packed=b"\xff" * 60)),
    "cut-deflate": ("data that end early", _spec(packed=deflated(b"x = 1\n" * 999)[:9])),
    "after-deflate": ("data behind the packed ones", lambda f: zip_of(
        [replace(m, packed=deflated(m.content) + b"hidden") for m in honest(f)])),
    "unfinished-deflate": ("data without an end", lambda f: zip_of(
        [replace(m, packed=deflated(m.content, zlib.Z_SYNC_FLUSH)) for m in honest(f)])),
    "deflate64": ("another method with the same data", lambda f: zip_of(
        [replace(m, packed=deflated(m.content), method=9) for m in honest(f)])),
    "parts": ("the second part of two", _edited(lambda z: z[:-18] + b"\1\0" + z[-16:])),
    "gap-behind": ("data between the members and their directory", _spec(after=b"hidden")),
    "gap": ("data between members", _spec(before=b"PK\3\4 hidden")),
    "before": ("a program before it", _edited(lambda z: b"#!/bin/sh\nid\n" + z)),
    "behind": ("data after it", _edited(lambda z: z + b"hidden")),
    "two-zips": ("two archives in one file", _edited(lambda z: z + z)),
    "comment": ("a comment, where another archive may hide", _with(comment=b"x" * 40)),
    "before-end": ("data before the last record", _with(before_end=b"hidden")),
    "count-less": ("a count that is too small", _with(count=3)),
    "count-more": ("a count that is too large", _with(count=9999)),
    "cut": ("half of it", _edited(lambda z: z[: len(z) // 2])),
    "headless": ("the second half", _edited(lambda z: z[len(z) // 2 :])),
    "end-only": ("a last record that promises the rest", lambda f: struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, 9, 9, 900, 0, 0)),
    "signatures": ("nothing but signatures", lambda f: b"PK\1\2" * 500_000 + struct.pack(
        "<4s4H2LH", b"PK\5\6", 0, 0, 60_000, 60_000, 2_000_000, 0, 0)),
    "members": ("60,000 members", lambda f: zip_of([Lie(b"", b"", method=0)], count=60_000)),
    "many-in-zip": ("over 5,000 files", _with(*(Lie(b"runs/%d.json" % i, b"", method=0) for i in range(5001)))),
    "empty-zip": ("no members", lambda f: zip_of([])),
    "no-bytes": ("nothing", lambda f: b""),
    "text": ("a text called .zip", lambda f: b"submission\n" * 99),
    "tar": ("a tar called .zip", _tar),
    "big-zip": ("over 50 MB", lambda f: b"PK\3\4" + bytes(50_000_000)),
}  # fmt: skip
