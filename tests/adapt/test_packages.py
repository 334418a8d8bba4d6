"""Archives that a package index serves: members, the cache, and never a byte that was not pinned."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cprbench.adapt.data import load_dataset
from cprbench.adapt.packages import cache_folder, extract_folder, fetch_package, file_sha256, read_member
from cprbench.errors import DataError, OfflineError
from cprbench.tasks import load_task

REQUIREMENT = "some-package==1.0"


def zipped(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return stream.getvalue()


def tarred(files: dict[str, bytes], mode: Any = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def archive(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache, which is the one in use."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CPRBENCH_CACHE", str(folder))
    return folder


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Replace pip by one that serves these files, and returns 1 where there are none; it checks no hash."""
    served: dict[str, bytes] = {}

    def pip(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert "--require-hashes" in command
        assert "--no-deps" in command
        target = Path(command[command.index("-d") + 1])
        target.mkdir()
        for name, data in served.items():
            (target / name).write_bytes(data)
        return subprocess.CompletedProcess(command, 0 if served else 1, "", "" if served else "no such version")

    monkeypatch.setattr("cprbench.adapt.packages.subprocess.run", pip)
    return served


# --- members ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", [zipped, tarred])
@pytest.mark.parametrize("inner", [zipped, tarred])
def test_a_member_is_read_through_an_archive_inside_an_archive(tmp_path: Path, outer: Any, inner: Any) -> None:
    files = {"top-1.0/data/inner": inner({"folder/a.txt": b"found", "b.txt": b"other"}), "top-1.0/a.txt": b"not this"}
    path = archive(tmp_path, "outer", outer(files))
    assert read_member(path, "data/inner::folder/a.txt") == b"found"
    assert read_member(path, "data/inner::a.txt") == b"found"
    assert read_member(path, "top-1.0/a.txt") == b"not this"


def test_a_zip_at_the_end_of_a_plain_tar_does_not_hide_the_tar(tmp_path: Path) -> None:
    data = tarred({"first.txt": b"first", "inner.zip": zipped({"a.txt": b"found"})}, "w")
    path = archive(tmp_path, "outer.tar", data)
    assert read_member(path, "first.txt") == b"first"
    assert read_member(path, "inner.zip::a.txt") == b"found"


def test_a_member_matches_by_whole_names_only(tmp_path: Path) -> None:
    path = archive(tmp_path, "a.zip", zipped({"data/xa.txt": b"other"}))
    with pytest.raises(DataError, match=r"a\.zip: 0 members match 'a\.txt'"):
        read_member(path, "a.txt")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_member_that_is_absent_or_ambiguous_is_refused(tmp_path: Path, pack: Any) -> None:
    path = archive(tmp_path, "a.zip", pack({"one/a.txt": b"1", "two/a.txt": b"2"}))
    with pytest.raises(DataError, match=r"a\.zip: 0 members match 'c\.txt'\. Name exactly one"):
        read_member(path, "c.txt")
    with pytest.raises(DataError, match=r"a\.zip: 2 members match 'a\.txt'\. Name exactly one"):
        read_member(path, "a.txt")
    assert read_member(path, "two/a.txt") == b"2"


def test_a_step_into_what_is_no_archive_names_it(tmp_path: Path) -> None:
    path = archive(tmp_path, "a.zip", zipped({"data/a.txt": b"plain text"}))
    with pytest.raises(DataError, match=r"a\.zip::data/a\.txt is neither a zip nor a tar archive"):
        read_member(path, "data/a.txt::b.txt")


def test_folders_and_links_are_no_members(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(DataError, match="0 members match"):
        read_member(archive(tmp_path, "a.tar.gz", stream.getvalue()), "link.txt")


def test_a_folder_of_a_wheel_is_extracted_once_and_whole(tmp_path: Path) -> None:
    wheel = archive(tmp_path, "a.whl", zipped({"m/model/a.bin": b"a", "m/model/deep/b.bin": b"b", "m/c.py": b"c"}))
    target = extract_folder(wheel, "m/model", tmp_path / "out" / "model")
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {"a.bin": b"a"}
    wheel.unlink()
    assert extract_folder(wheel, "m/model", target) == target
    with pytest.raises(DataError, match="no files in 'm/nothing'"):
        extract_folder(archive(tmp_path, "b.whl", zipped({"m/c.py": b"c"})), "m/nothing", tmp_path / "none")
    assert not (tmp_path / "none").exists()


# --- the cache --------------------------------------------------------------------------------------


def test_an_empty_cache_offline_names_the_requirement_and_the_cure(cache: Path, index: dict[str, bytes]) -> None:
    index["some_package-1.0.zip"] = b"served"
    with pytest.raises(OfflineError) as caught:
        fetch_package(REQUIREMENT, "0" * 64, offline=True)
    for words in (REQUIREMENT, str(cache), "without --offline"):
        assert words in str(caught.value)


def test_the_task_of_a_package_says_offline_which_package_it_needs(cache: Path) -> None:
    with pytest.raises(OfflineError, match=r"movie-snippets.*\n.*vaderSentiment==3\.3\.2"):
        load_dataset(load_task("movie-snippets"), offline=True)


def test_what_was_fetched_once_is_read_from_the_cache(cache: Path, index: dict[str, bytes]) -> None:
    data = b"the archive"
    digest = hashlib.sha256(data).hexdigest()
    index["some_package-1.0.zip"] = data
    first = fetch_package(REQUIREMENT, digest, offline=False)
    index.clear()
    assert fetch_package(REQUIREMENT, digest, offline=True) == first
    assert first.read_bytes() == data
    assert first.is_relative_to(cache)
    assert file_sha256(first) == digest


def test_a_cached_file_with_a_wrong_hash_is_not_used(cache: Path, index: dict[str, bytes]) -> None:
    data = b"the archive"
    digest = hashlib.sha256(data).hexdigest()
    index["some_package-1.0.zip"] = data
    path = fetch_package(REQUIREMENT, digest, offline=False)
    path.write_bytes(b"the archivE")
    with pytest.raises(OfflineError, match=r"some-package==1\.0 is not in the cache"):
        fetch_package(REQUIREMENT, digest, offline=True)
    path.write_bytes(b"torn")
    assert fetch_package(REQUIREMENT, digest, offline=False).read_bytes() == data


def test_a_download_with_a_wrong_hash_is_refused_and_not_kept(cache: Path, index: dict[str, bytes]) -> None:
    index["some_package-1.0.zip"] = b"something else"
    with pytest.raises(DataError, match=r"some-package==1\.0: sha256 is .*, expected 0{64}\. Do not use"):
        fetch_package(REQUIREMENT, "0" * 64, offline=False)
    assert not list(cache.glob("packages/*/*"))


def test_a_version_that_the_index_does_not_have_is_named_with_what_pip_said(
    cache: Path, index: dict[str, bytes]
) -> None:
    with pytest.raises(DataError, match=r"(?s)could not download some-package==1\.0.*no such version"):
        fetch_package(REQUIREMENT, "0" * 64, offline=False)


def test_the_cache_is_where_the_environment_says(cache: Path) -> None:
    assert not cache.exists()
    assert cache_folder() == cache
    assert cache.is_dir()


def test_movie_snippets_comes_out_of_the_real_sdist_with_its_published_sizes() -> None:
    data = load_dataset(load_task("movie-snippets"))
    assert data.counts() == {"train": 6328, "validation": 938, "test": 1907}
    assert data.choices == ("negative", "positive")
    assert data.source == "package"
    assert all(example.tail == "\nSentiment:" for example in data.test)
    shares = [sum(e.reference == "positive" for e in part) / len(part) for part in (data.train, data.test)]
    assert all(0.4 < share < 0.6 for share in shares)
