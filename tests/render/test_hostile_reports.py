"""Records that strangers wrote: no text of theirs stops a format, or reaches a terminal as what it would obey."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cprbench.judge.evidence import Evidence
from cprbench.render.formats.writing import FORMATS, Writing
from cprbench.spec import Environment, Reading
from tests.records_factory import make_blocks, make_psi, make_record
from tests.render.test_contents import FINALS, FLOPS

HOSTILE = '\x1b[2J</script><img src=x onerror=alert(1)>\\input{/etc/passwd}$|=HYPERLINK("x")\u202e漢🙂\nnext'


STRANGE: dict[str, dict[str, Any]] = {
    "arm": {"arm": HOSTILE},
    "task": {"spec": {"task": HOSTILE}},
    "model": {"spec": {"model": HOSTILE}},
    "machine": {"environment": Environment(hardware_class=HOSTILE, packages={HOSTILE: HOSTILE})},
    "error": {"status": "failed", "error": HOSTILE},
    "suite": {"suite": HOSTILE, "suite_version": 1, "limits": {HOSTILE: 1}},
    "metric": {"psi": make_psi(metric=HOSTILE[:60])},
    "quantity": {
        "readings": [Reading(phase="billed", quantity=HOSTILE, value=1.0, source="modelled", flags=[HOSTILE])]
    },
    "notes": {"notes": {"selection": {"predictor": HOSTILE}, "stop": {"why": HOSTILE, "stopped_at": HOSTILE}}},
}


@pytest.mark.parametrize("format_", FORMATS)
def test_no_text_of_a_stranger_stops_a_format_or_reaches_a_terminal(format_: str) -> None:
    records = [*make_blocks(FINALS, FLOPS)]
    for i, overrides in enumerate(STRANGE.values()):
        records.append(
            make_record(**{"arm": "full", "block": 7 + i, "method": "full", "run_id": f"{i:016x}"} | overrides)
        )
    files = Writing(Evidence.of(records)).files(format_)
    assert files
    for path, content in files.items():
        assert not Path(path).is_absolute() and ".." not in Path(path).parts
        if not path.endswith(".pdf"):
            assert b"\x1b" not in content, path
