"""The files of a submission: the same from a folder and from a .zip, and nothing else is opened."""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cprbench.errors import SubmissionError
from cprbench.submissions.archive import Archive
from cprbench.submissions.bundle import Bundle, open_bundle
from tests.hostile.archives import ARCHIVES, Lie, deflated, zip_of
from tests.hostile.archives import honest as members_of
from tests.hostile.corpus import READ_AS_TEXT, RUN, honest
from tests.hostile.folders import FOLDERS

SLOW = {"many", "many-runs", "fat-records"}  # to make: tests/submissions/test_hostile.py reads them


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return honest(tmp_path / "submission")


def whole(bundle: Bundle) -> dict[str, bytes]:
    content = {name: bundle.read(name) for name in bundle.files}
    assert {name: len(data) for name, data in content.items()} == bundle.files
    return content


def make_zip(folder: Path, path: Path) -> Path:
    path.write_bytes(zip_of(members_of(folder)))
    return path


def streamed(folder: Path) -> bytes:
    """Return a .zip as programs write it that cannot go back: sizes follow the data."""
    stream = io.BytesIO()
    stream.seekable = lambda: False  # type: ignore[method-assign]
    stream.tell = lambda: (_ for _ in ()).throw(OSError)  # type: ignore[method-assign]
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in members_of(folder):
            archive.writestr(member.name.decode(), member.content)
    return stream.getvalue()


def made_by_shutil(folder: Path) -> bytes:
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name)).read_bytes()  # below one folder


def stored(folder: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.mkdir("runs/")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(folder))
    return stream.getvalue()


WRITERS: list[Callable[[Path], bytes]] = [lambda f: zip_of(members_of(f)), streamed, made_by_shutil, stored]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_folder_and_a_zip_of_it_are_the_same_submission(folder: Path, writer: Callable[[Path], bytes]) -> None:
    zipped = folder.parent / "x.zip"
    zipped.write_bytes(writer(folder))
    bundles = open_bundle(folder), open_bundle(zipped)
    assert whole(bundles[0]) == whole(bundles[1])
    assert f"runs/{RUN}/record.json" in bundles[0].files
    assert bundles[0].digest == bundles[1].digest


def test_files_of_every_name_that_a_submission_has_are_taken(folder: Path) -> None:
    names = ["README.md", "runs/minilm.1+2_x-y.json", f"runs/{RUN}/blueprints/0.50.json", f"runs/{RUN}-2/record.json"]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("{}")
    assert set(names) < set(open_bundle(folder).files)


def test_the_digest_changes_with_every_name_and_byte(folder: Path) -> None:
    def digest() -> str:
        return open_bundle(folder).digest

    (folder / "runs/a.json").write_bytes(b"ab")
    (folder / "runs/b.json").write_bytes(b"c")
    seen = [digest()]
    (folder / "runs/a.json").write_bytes(b"a")
    (folder / "runs/b.json").write_bytes(b"bc")
    seen.append(digest())
    (folder / "runs/a.json").rename(folder / "runs/c.json")
    seen.append(digest())
    (folder / "runs/c.json").unlink()
    seen.append(digest())
    assert len(set(seen)) == 4
    (folder / "runs/c.json").write_bytes(b"a")
    assert digest() == seen[2]


@pytest.mark.parametrize("name", sorted({*FOLDERS, *ARCHIVES} - READ_AS_TEXT - SLOW))
def test_a_hostile_folder_or_zip_is_refused(folder: Path, name: str) -> None:
    path = folder
    if name in FOLDERS:
        FOLDERS[name][1](folder)
    else:
        path = folder.with_suffix(".zip")
        path.write_bytes(ARCHIVES[name][1](folder))
    with pytest.raises(SubmissionError) as refused:
        bundle = open_bundle(path)
        assert bundle.digest
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("pickle-file", "is no part of a submission; it was not opened"),
        ("twins", "is there twice, or beside a name of other case"),
        ("link-record", "record.json' is a link, pipe or device"),
        ("link-run", f"runs/{RUN}' is a link, pipe or device"),
        ("big-file", "has 16,000,001 bytes, over 16,000,000"),
        ("much", "over 256,000,000 bytes in all"),
        ("traversal", "'../../evil.json' is no part of a submission"),
        ("nul-name", r"'runs/x.json\x00.exe' is no part of a submission"),
        ("bomb", "unpacks to over 200 times its packed size"),
        ("bomb-denied", "unpacks to more than the 10 bytes that it says"),
        ("overlapping", "data lie before, between or under its members"),
        ("local-name", "its two headers say different things"),
        ("encrypted", "is encrypted"),
        ("crc", "its size or CRC is another one"),
        ("after-deflate", "has data after its end"),
        ("members", "it has 60,000 members, over 10,000"),
        ("parts", "its last record does not fit it"),
        ("comment", "does not end as a .zip without a comment does"),
        ("count-less", "its directory does not fill its place"),
        ("many-in-zip", "over 5,000 files"),
        ("big-zip", "over 50,000,000 bytes"),
    ],
)
def test_a_refusal_says_which_control_it_is(folder: Path, name: str, told: str) -> None:
    path = folder
    if name in FOLDERS:
        FOLDERS[name][1](folder)
    else:
        path = folder.with_suffix(".zip")
        path.write_bytes(ARCHIVES[name][1](folder))
    with pytest.raises(SubmissionError) as refused:
        assert open_bundle(path).digest
    assert told in str(refused.value)


def test_a_link_to_a_submission_is_not_followed(folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    zipped = folder.parent / "link.zip"
    zipped.symlink_to(make_zip(folder, folder.parent / "x.zip"))
    for path in (link, zipped):
        with pytest.raises(SubmissionError, match="cannot be read"):
            open_bundle(path)


def test_equal_lines_may_pack_to_a_thousandth_while_they_are_few(folder: Path) -> None:
    zipped = folder.parent / "x.zip"
    zipped.write_bytes(zip_of([Lie(b"runs/x.json", b" " * 999_999)]))
    assert len(open_bundle(zipped).read("runs/x.json")) == 999_999


def test_a_zip_is_read_as_python_reads_it_though_its_data_come_in_pieces() -> None:
    content = os.urandom(700_000) + bytes(200_000) + os.urandom(300_000)
    members = [Lie(b"a", content), Lie(b"b", content, method=0), Lie(b"c", b""), Lie(b"d", b"", method=0)]
    archive = Archive(zip_of(members), "x.zip")
    assert [b"".join(archive.pieces(name)) for name in "abcd"] == [content, content, b"", b""]
    assert deflated(content) in zip_of(members)


@pytest.mark.parametrize("content", [b"abcd", b"abcdef", b""])
def test_a_file_that_is_longer_or_shorter_than_listed_is_refused(content: bytes) -> None:
    assert Bundle("x", {"a": 5}, lambda name: iter([b"ab", b"cde"])).read("a") == b"abcde"
    with pytest.raises(SubmissionError, match="not the 5 bytes"):
        Bundle("x", {"a": 5}, lambda name: iter([content[:2], content[2:]])).read("a")


def test_what_is_not_there_cannot_be_read(folder: Path) -> None:
    with pytest.raises(SubmissionError, match=r"there is no \.\./x"):
        open_bundle(folder).read("../x")
    with pytest.raises(SubmissionError, match="No such file"):
        open_bundle(folder / "nowhere")


def _link(path: Path, other: Path) -> None:
    path.rename(other)
    path.symlink_to(other)


def _longer(path: Path, other: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def _another(path: Path, other: Path) -> None:
    other.write_bytes(b"x" * path.stat().st_size)
    other.replace(path)


@pytest.mark.parametrize("swap", [_link, _longer, _another])
def test_a_file_that_is_swapped_after_it_was_listed_is_not_read(
    folder: Path, swap: Callable[[Path, Path], None]
) -> None:
    bundle = open_bundle(folder)
    swap(folder / "runs" / RUN / "record.json", folder.parent / "other")
    with pytest.raises(SubmissionError, match="cannot be read|changed while it was read"):
        bundle.read(f"runs/{RUN}/record.json")


def test_a_folder_that_is_swapped_for_a_link_or_another_is_not_entered(folder: Path) -> None:
    bundle = open_bundle(folder)
    _link(folder / "runs" / RUN, folder.parent / "other")
    with pytest.raises(SubmissionError, match="cannot be read"):
        bundle.read(f"runs/{RUN}/record.json")
    folder.rename(folder.parent / "moved")
    honest(folder)
    with pytest.raises(SubmissionError, match="was replaced"):
        bundle.read(f"runs/{RUN}/record.json")
