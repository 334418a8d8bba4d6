"""Records that strangers wrote: no text of theirs stops a format, or reaches a terminal as what it would obey."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from cprbench.integrations.notebook import load_runs
from cprbench.judge.cpr import compare
from cprbench.judge.evidence import Evidence
from cprbench.render.formats.writing import FORMATS, Writing
from cprbench.render.terminal import print_groups
from cprbench.spec import Environment, Reading
from tests.records_factory import make_blocks, make_psi, make_record, store_run
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


def test_a_terminal_and_a_notebook_show_what_they_would_obey_or_hide(tmp_path: Path) -> None:
    records = [
        *make_blocks(FINALS, FLOPS),
        make_record(arm=HOSTILE, method="lora"),
        make_record(spec={"task": HOSTILE}),
    ]
    told = io.StringIO()
    print_groups(Console(file=told, width=80), compare(records))
    for record in records:
        store_run(tmp_path, record)
    for shown in (told.getvalue(), load_runs(tmp_path)._repr_html_()):
        assert "\x1b" not in shown and "\u202e" not in shown
        assert "\\x1b" in shown
