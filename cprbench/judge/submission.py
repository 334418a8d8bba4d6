"""The nouns of submissions: what an author says, what validation found, and what a board shows. Files and words only.

A submission is a folder: submission.toml, and runs/<run id>/ as `cprbench run` wrote them. Everything that a board
shows of it is recomputed from these runs; what their records say themselves is only compared with that.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from cprbench.schema import Count, Finite, Frozen, Sha256, Table
from cprbench.spec import Name

SUBMISSION_SCHEMA: Literal["cprbench.submission/1"] = "cprbench.submission/1"
SUBMISSION_FILE, RUNS_FOLDER = "submission.toml", "runs"

#: invalid: it cannot be read, or holds what no submission holds. contradicted: its own raw files say otherwise.
#: unverified: something that ranks could not be recomputed. consistent: everything was, and agrees.
Status = Literal["invalid", "contradicted", "unverified", "consistent"]
#: reproduced: runs of other authors with the same ids agree. Only consistent and above rank.
Tier = Literal["self-reported", "consistent", "reproduced"]
#: wrong: contradicts the raw files. unverified: could not be recomputed here. unranked: holds, but does not rank.
Level = Literal["invalid", "wrong", "unverified", "unranked"]


def shown_line(text: str) -> str:
    """Return a line of text as it is. Raises ValueError for what a page could not show as one harmless line.

    Refused are control characters, bidirectional overrides, characters without a shape and text that is not NFC.
    """
    for character in text:
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            raise ValueError(f"holds the character U+{ord(character):04X}, which cannot be seen")
    if not unicodedata.is_normalized("NFC", text):
        raise ValueError("is not in Unicode's normal form NFC")
    return text


def _shown_lines(text: str) -> str:
    return "\n".join(shown_line(line) for line in text.split("\n"))


_LINK = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?(/[A-Za-z0-9._~!$&()*+,;=:@%/?#-]*)?")


def _link(text: str) -> str:
    if not _LINK.fullmatch(text):
        raise ValueError("is no plain http or https address")
    return text


Line = Annotated[str, Field(pattern=r"\S", max_length=200), AfterValidator(shown_line)]
Link = Annotated[str, Field(max_length=400), AfterValidator(_link)]


class SubmissionSpec(Frozen):
    """submission.toml. `division`: closed keeps the suite's own recipe and arms, open brings its own."""

    schema_: Annotated[Literal["cprbench.submission/1"], Field(alias="schema")]
    name: Name
    authors: Annotated[list[Line], Field(min_length=1, max_length=50)]
    license: Line  # of the records, as an SPDX identifier
    division: Literal["closed", "open"] = "closed"
    links: Annotated[list[Link], Field(max_length=10)] = []
    description: Annotated[
        str, Field(max_length=2000), AfterValidator(lambda t: "\n".join(map(shown_line, t.split("\n"))))
    ] = ""


class Finding(Frozen):
    """One rule that one file does not keep. `file`: inside the submission, "" for the submission as a whole."""

    code: str  # of the rule: "P2"
    level: Level
    file: str
    message: str  # what is wrong, with the value that is said and the one that was found
    cure: str


class Number(Frozen):
    """An estimate as pages show it: a value with its interval where there is one, or the reason why there is none."""

    value: Finite | None
    low: Finite | None = None
    high: Finite | None = None
    why: str | None = None


class RunLine(Frozen):
    """One run of a row, as an entry's page lists it."""

    run_id: str
    block: int
    status: str
    psi: Finite | None
    base: Finite | None
    gamma: dict[str, Finite | None]
    seconds: dict[str, Finite | None]
    #: (billed FLOPs, psi on the validation split) over training
    curve: list[tuple[Finite, Finite]] = []
    learning_rate: Finite | None = None
    learning_rate_from: str = ""
    packages: dict[str, str] = {}
    commit: str | None = None
    dirty: bool | None = None
    trace_sha256: str = ""  # of its raw samples: two runs never have the same
    item_variance: Finite | None = None  # of psi, for another draw of items


class Row(Frozen):
    """One row of the board: suite version x task version x weights x method and settings x selection and settings x
    hardware class, of one submission."""

    id: str  # 12 hexadecimal digits: the same in every build
    suite: str  # "" for runs that no suite asked for
    suite_version: int | None
    task: str
    task_version: int
    domain: str
    model: str
    weights_sha256: str | None
    data_sha256: str | None = None
    method: str
    settings: Table
    selection: str
    selection_settings: Table
    arm: str
    hardware_class: str
    metric: str
    reference: str  # gains are over "head" or over "base"
    baseline: bool
    role: str
    tier: Tier
    unranked: list[str]  # why it does not rank, empty where it does
    blocks: list[int]
    failed: Count
    psi: Number
    gain: Number
    retained_gain: Number
    gamma: dict[str, Number]  # spec.RESOURCES
    seconds: Number
    peak_memory_bytes: Number
    optimizer_state_bytes: Number
    trained_share: Number
    selected_examples: Number
    multiple_of_full: dict[str, Number]
    quadrant: dict[str, str]
    k: Number
    picker: str  # how the submodules were picked: "norm", "random", "depth"; "" where all or adapters train
    q: Number
    limits: Table = {}
    search: Number  # seconds of the search for a learning rate, or why there is none
    trials: Count
    runs: list[RunLine]

    @property
    def ranked(self) -> bool:
        """Whether the row takes part in fronts and order."""
        return not self.unranked


class Entry(Frozen):
    """A submission as the board knows it: its file, what validation found, and its rows."""

    digest: Sha256  # of all of its bytes and of the validator's version
    submission: SubmissionSpec | None  # None where it could not be read
    folder: str
    zipped: bool = False  # whether it is a .zip, whose suffix `folder` leaves out
    status: Status
    checked: dict[str, Count]  # rule code -> files that it was asked of
    findings: list[Finding]
    rows: list[Row]


def told(value: Any) -> Number:
    """Return an Estimate or a Figure of judge/ as a Number."""
    low, high = getattr(value, "low", None), getattr(value, "high", None)
    return Number(value=value.value, low=low, high=high, why=value.why)
