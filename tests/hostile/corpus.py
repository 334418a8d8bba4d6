"""All hostile submissions by name. `honest` is what they are made of, and validate finds nothing wrong with it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from tests.hostile.archives import ARCHIVES
from tests.hostile.documents import DOCUMENTS, NUMBERS
from tests.hostile.folders import FOLDERS
from tests.submissions.altering import rehash

RUN = "874a5dd8179692c2"
SPEC = b"""schema = "cprbench.submission/1"
name = "honest"
authors = ["Ada Lovelace"]
license = "CC-BY-4.0"
"""
#: What is refused by validate, and what it may make of as it can.
REFUSED, JUDGED = (*DOCUMENTS, *FOLDERS, *ARCHIVES), tuple(NUMBERS)
#: What can be read and is refused for what it says, by validate.
READ_AS_TEXT = {
    "manifest-upwards", "no-record", "no-runs", "no-spec", "not-an-object", "nothing", "toml-unknown", "empty-zip",
}  # fmt: skip


def honest(folder: Path) -> Path:
    """Write an honest submission, one real run, into a new folder and return it."""
    with zipfile.ZipFile(Path(__file__).parents[1] / "records" / "methods.zip") as archive:
        for name in archive.namelist():
            if name.startswith(f"{RUN}/"):
                path = folder / "runs" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))
    (folder / "submission.toml").write_bytes(SPEC)
    return folder


def made(name: str, root: Path) -> Path:
    """Make a hostile submission in the folder `root` / its name and return the path to read."""
    folder = honest(root / name / "submission")
    if name in DOCUMENTS or name in NUMBERS:
        _, file, change = (DOCUMENTS | NUMBERS)[name]
        path = folder / file if file == "submission.toml" else folder / "runs" / RUN / file
        path.write_bytes(change(path.read_bytes()))
        if file not in ("submission.toml", "manifest.json"):
            rehash(path.parent)  # who forges a file forges its hash
    elif name in FOLDERS:
        FOLDERS[name][1](folder)
    else:
        path = folder.with_suffix(".zip")
        path.write_bytes(ARCHIVES[name][1](folder))
        return path
    return folder
