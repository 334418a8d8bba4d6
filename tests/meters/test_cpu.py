"""RAPL over a fake powercap tree, and codecarbon's estimate beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cprbench.meters.cpu import ModelledEnergy, RaplMeter, assumed_watts, modelled_cpu_readings, rapl_readings
from cprbench.meters.energy import WALL, NotMeasured, Spans
from cprbench.meters.trace import Sample, Trace
from cprbench.spec import Reading

Group = Callable[[Trace], Spans]
RANGE = 262_143_328_850  # microjoules, as a desktop part has it


def overwrite(path: Path, number: int) -> None:
    """Write a counter in place: making a file short and long again costs the disk milliseconds."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(b"%20d\n" % number)


class Tree:
    """A powercap tree whose counters follow a clock that the test sets (watts per zone)."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 0.0
        self._zones: list[tuple[Path, float, int, int]] = []
        root.mkdir(parents=True, exist_ok=True)

    def zone(self, folder: str, name: str, watts: float, start: int = 1_000_000, limit: int = RANGE) -> Path:
        path = self.root / folder
        path.mkdir()
        (path / "name").write_text(name + "\n")
        (path / "max_energy_range_uj").write_text(f"{limit}\n")
        self._zones.append((path, watts, start, limit))
        self.at(self.now)
        return path

    def at(self, t: float) -> None:
        self.now = t
        for path, watts, start, limit in self._zones:
            energy = path / "energy_uj"
            if not energy.is_dir():
                overwrite(energy, (start + int(1e6 * watts * t)) % limit)

    def meter(self) -> RaplMeter:
        return RaplMeter(self.root, clock=lambda: self.now, wall=lambda: 1.8e9 + self.now)

    def run(self, meter: RaplMeter, seconds: float, between: Callable[[int], None] = lambda tick: None) -> Trace:
        """Sample at 10 Hz; phase train lasts from 1 s to the end less 1 s."""
        samples = []
        ticks = int(seconds * 10)
        for n in range(ticks + 1):
            self.at(n / 10)
            between(n)
            edge = {10: "start", ticks - 10: "end"}.get(n)
            values = meter.sample() if edge is None else meter.edge()
            samples.append(Sample(self.now, values, "train" if edge else None, edge))  # type: ignore[arg-type]
        return Trace(samples, meter.missing())


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "powercap")


def measured(trace: Trace, group: Group) -> dict[str, Reading]:
    return {r.quantity: r for r in rapl_readings(trace, group(trace)) if r.phase == "train"}


def test_packages_and_dram_are_separate_and_other_zones_are_left_out(tree: Tree, spans: Group) -> None:
    (tree.root / "intel-rapl").mkdir()  # the control type itself: no zone
    tree.zone("intel-rapl:0", "package-0", 50)
    tree.zone("intel-rapl:0:0", "core", 30)
    tree.zone("intel-rapl:0:1", "uncore", 5)
    tree.zone("intel-rapl:0:2", "dram", 4)
    tree.zone("intel-rapl:1", "package-1", 60, start=77_000_000)
    tree.zone("intel-rapl:1:0", "dram", 6, start=88_000_000)
    tree.zone("intel-rapl:2", "psys", 200)
    meter = tree.meter()
    assert meter.missing() == {}
    assert meter.facts()["rapl_zones"] == {
        "cpu_energy_joules": ["package-0", "package-1"],
        "ram_energy_joules": ["package-0/dram", "package-1/dram"],
    }
    readings = measured(tree.run(meter, 22), spans)
    assert readings["cpu_energy_joules"].value == pytest.approx(110 * 20, abs=1e-3)
    assert readings["ram_energy_joules"].value == pytest.approx(10 * 20, abs=1e-3)
    assert {r.source for r in readings.values()} == {"rapl"}
    assert readings["cpu_energy_joules"].detail["resolution_joules"] == pytest.approx(0.11)


@pytest.mark.parametrize("watts", [1.0, 200.0, 900.0])
def test_a_counter_that_wraps_over_and_over_counts_on(watts: float, tree: Tree, spans: Group) -> None:
    tree.zone("intel-rapl:0", "package-0", watts, start=999_999_000, limit=1_000_000_000)
    meter = tree.meter()
    trace = tree.run(meter, 22)
    counter = [s.values["rapl_package_energy_joules"] for s in trace.samples]
    assert counter == sorted(counter)
    assert measured(trace, spans)["cpu_energy_joules"].value == pytest.approx(watts * 20, abs=1e-3)


def test_a_counter_set_anew_is_no_wrap_and_no_number(tree: Tree, spans: Group) -> None:
    path = tree.zone("intel-rapl:0", "package-0", 50, start=100_000_000_000)

    def reset(tick: int) -> None:
        if tick >= 100:
            overwrite(path / "energy_uj", tick)

    reading = measured(tree.run(tree.meter(), 22, reset), spans)["cpu_energy_joules"]
    assert reading.value is None
    assert "intel-rapl:0 went from 100495000000 to 100 uJ, which is no wrap" in str(reading.why_missing)


def test_zones_that_mirror_one_counter_count_once(tree: Tree, spans: Group) -> None:
    for die in range(4):
        tree.zone(f"intel-rapl:{die}", f"package-0-die-{die}", 50, start=5_000_000)
    tree.zone("intel-rapl:4", "package-1-die-0", 70, start=6_000_000)
    meter = tree.meter()
    assert meter.facts()["rapl_mirrors"] == {f"intel-rapl:{die}": "intel-rapl:0" for die in (1, 2, 3)}
    assert measured(tree.run(meter, 22), spans)["cpu_energy_joules"].value == pytest.approx(120 * 20, abs=1e-3)


def test_one_package_served_by_two_drivers_counts_once_though_its_counters_differ(tree: Tree, spans: Group) -> None:
    tree.zone("intel-rapl:0", "package-0", 50, start=5_000_000)
    tree.zone("intel-rapl-mmio:0", "package-0", 50, start=9_000_000)
    assert measured(tree.run(tree.meter(), 22), spans)["cpu_energy_joules"].value == pytest.approx(1000, abs=1e-3)


def test_counters_that_stand_at_zero_are_not_taken_for_mirrors(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0", 50, start=0)
    tree.zone("intel-rapl:1", "package-1", 60, start=0)
    assert tree.meter().facts()["rapl_mirrors"] == {}


def test_a_counter_that_does_not_move_is_not_zero_joules(tree: Tree, spans: Group) -> None:
    tree.zone("intel-rapl:0", "package-0", 0)
    reading = measured(tree.run(tree.meter(), 22), spans)["cpu_energy_joules"]
    assert (reading.value, "did not move" in str(reading.why_missing)) == (None, True)


def test_an_unreadable_counter_says_how_to_grant_it_and_the_rest_goes_on(tree: Tree, spans: Group) -> None:
    tree.zone("intel-rapl:0", "package-0", 50)
    path = tree.zone("intel-rapl:1", "package-1", 50, start=7_000_000)
    tree.zone("intel-rapl:1:0", "dram", 5)
    # A folder in the file's place: nobody can read it, root neither.
    (path / "energy_uj").unlink()
    (path / "energy_uj").mkdir()
    meter = tree.meter()
    readings = measured(tree.run(meter, 22), spans)
    why = str(readings["cpu_energy_joules"].why_missing)
    assert readings["cpu_energy_joules"].value is None  # one socket of two is no total
    assert "intel-rapl:1/energy_uj cannot be read" in why
    assert "groupadd" in why
    assert "udev" in why
    assert "a+r" not in why
    assert readings["ram_energy_joules"].value == pytest.approx(100, abs=1e-3)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_counter_closed_to_users_says_how_to_grant_it(tree: Tree) -> None:
    (tree.zone("intel-rapl:0", "package-0", 50) / "energy_uj").chmod(0)
    assert "Permission denied" in tree.meter().missing()["cpu_energy_joules"]


def test_no_powercap_tree_is_a_reason(tmp_path: Path, spans: Group) -> None:
    meter = RaplMeter(tmp_path / "nowhere")
    assert meter.sample() == meter.edge() == {}
    assert set(meter.missing()) == {"cpu_energy_joules", "ram_energy_joules"}
    edges = [Sample(0, {}, "train", "start"), Sample(9, {}, "train", "end")]
    for reading in measured(Trace(edges, meter.missing()), spans).values():
        assert "no RAPL zone under" in str(reading.why_missing)


def test_a_desktop_without_a_dram_zone_says_so(tree: Tree) -> None:
    tree.zone("intel-rapl:0", "package-0", 50)
    assert tree.meter().missing() == {"ram_energy_joules": "this CPU has no RAPL dram zone"}


def test_a_billed_total_of_fewer_than_sixty_samples_is_too_short(tree: Tree, spans: Group) -> None:
    tree.zone("intel-rapl:0", "package-0", 50)
    trace = tree.run(tree.meter(), 6)
    billed = next(r for r in rapl_readings(trace, spans(trace)) if r.phase == "billed")
    assert billed.why_missing == "too short: 41 samples, 60 needed"
    train = measured(trace, spans)["cpu_energy_joules"]
    assert train.flags == ["coarse"]
    assert train.value == pytest.approx(200, abs=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    gone=st.lists(st.tuples(st.integers(0, 120), st.integers(1, 60)), max_size=4),
    start=st.integers(1, 10**9),
    late=st.booleans(),
)
def test_a_counter_that_fails_at_random_yields_the_truth_or_a_reason_and_never_zero(
    gone: list[tuple[int, int]], start: int, late: bool, spans: Group
) -> None:
    away = {tick for first, count in gone for tick in range(first, first + count)}
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(Path(folder))
        path = tree.zone("intel-rapl:0", "package-0", 50, start=start, limit=1_000_000_000)
        tree.zone("intel-rapl:1", "package-1", 25, start=start + 7_000_000, limit=1_000_000_000)

        def fail(tick: int) -> None:
            energy = path / "energy_uj"
            if tick in away and not energy.is_dir():
                energy.unlink()
                energy.mkdir()
            elif tick not in away and energy.is_dir():
                shutil.rmtree(energy)
                tree.at(tree.now)

        if not late:
            fail(0)
        for reading in measured(tree.run(tree.meter(), 12, fail), spans).values():
            if reading.value is None:
                assert reading.why_missing
            else:
                assert reading.value == pytest.approx(75 * 10, abs=1e-3)


# --- codecarbon's estimate --------------------------------------------------------------------------


def modelled(trace: Trace, group: Group) -> dict[str, Reading]:
    return {r.quantity: r for r in modelled_cpu_readings(trace, group(trace)) if r.phase == "train"}


def host(load: Callable[[float], float], guessed: bool = False) -> Trace:
    """30 s of a machine with 2 CPUs, sampled once a second; train from 5.5 to 25.5 s."""
    key = "assumed_cpu_guessed_watts" if guessed else "assumed_cpu_table_watts"
    samples, busy = [], 0.0
    for n in range(0, 61):
        t = n / 2
        busy += 2 * 0.5 * load(t - 0.25) if n else 0.0
        edge = {11: "start", 51: "end"}.get(n)
        values = {"cpu_busy_seconds": busy, "cpu_total_seconds": 2 * t}
        if edge or n % 2 == 0:
            values |= {key: 100.0, "assumed_ram_watts": 10.0} if edge else {}
            samples.append(Sample(t, values, "train" if edge else None, edge))  # type: ignore[arg-type]
    return Trace(samples)


def test_the_estimate_follows_codecarbon_s_load_model_and_names_its_watts(spans: Group) -> None:
    for load, watts in ((0.0, 10.0), (0.5, 21.25), (1.0, 100.0)):
        readings = modelled(host(lambda t, load=load: load), spans)  # type: ignore[misc]
        cpu, ram = readings["cpu_energy_modelled_joules"], readings["ram_energy_modelled_joules"]
        assert cpu.value == pytest.approx(20 * watts)
        assert ram.value == pytest.approx(200)
        assert cpu.source == ram.source == "modelled"
        assert (cpu.detail["assumed_watts"], ram.detail["assumed_watts"]) == (100, 10)
        assert "0.1 + 0.9 x load^3" in cpu.detail["load_model"]
        assert cpu.detail["assumed_from"] == "codecarbon's table of CPUs"
    guess = modelled(host(lambda t: 0.5, guessed=True), spans)["cpu_energy_modelled_joules"]
    assert guess.detail["assumed_from"] == "codecarbon's guess per thread"


def test_the_load_is_cubed_second_by_second_and_not_over_the_whole_phase(spans: Group) -> None:
    reading = modelled(host(lambda t: 1.0 if t < 15 else 0.0), spans)["cpu_energy_modelled_joules"]
    assert reading.value == pytest.approx(9.5 * 100 + 10.5 * 10)


def test_an_estimate_without_load_or_watts_is_a_reason(spans: Group) -> None:
    bare = Trace([Sample(0, {}, "train", "start"), Sample(9, {}, "train", "end")], {"cpu_energy_modelled_joules": "x"})
    readings = modelled(bare, spans)
    assert readings["cpu_energy_modelled_joules"].why_missing == "x"
    assert "no sample of cpu_total_seconds" in str(readings["ram_energy_modelled_joules"].why_missing)


def test_the_meter_of_this_machine_gives_what_the_estimate_needs(spans: Group) -> None:
    pytest.importorskip("codecarbon")
    meter = ModelledEnergy()
    start = meter.edge()
    assert meter.missing() == {}
    assert start["assumed_ram_watts"] > 0
    assert {"assumed_cpu_table_watts", "assumed_cpu_guessed_watts"} & set(start)
    assert 0 < start["cpu_busy_seconds"] < start["cpu_total_seconds"]
    ticks = [meter.sample() for _ in range(11)]
    assert [bool(values) for values in ticks] == [True, *[False] * 9, True]
    assert set(ticks[0]) == {"cpu_busy_seconds", "cpu_total_seconds", WALL}
    assert meter.facts()["assumed_cpu_watts"] > 0


def test_the_assumed_watts_are_codecarbon_s_own() -> None:
    cpu = pytest.importorskip("codecarbon.core.cpu")
    ram = pytest.importorskip("codecarbon.external.ram")
    found = assumed_watts()
    assert found.ram == ram.RAM().total_power().W
    own = cpu.TDP()
    if found.guessed:
        assert found.cpu == own.tdp
        assert "its guess" in found.cpu_from
    else:
        assert found.cpu % own.tdp == 0  # per socket


def test_no_setting_of_codecarbon_changes_the_assumed_watts_and_nothing_is_asked_of_the_network(tmp_path: Path) -> None:
    pytest.importorskip("codecarbon")
    hostile = "[codecarbon]\nforce_cpu_power = 0.001\nforce_ram_power = 0.001\npue = 9\ncpu_physical_count = 64\n"
    (tmp_path / ".codecarbon.config").write_text(hostile)
    program = (
        "import socket\n"
        "def refuse(*a, **k): raise SystemExit('network!')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from cprbench.meters.cpu import assumed_watts\n"
        "from cprbench.meters.carbon import factors\n"
        "import sys; sys.stdout.write(repr(assumed_watts()) + repr(factors('FRA', None)))\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    plain = {"PYTHONPATH": root, "PATH": os.environ["PATH"]}
    settings = {f"CODECARBON_{k}": "0.001" for k in ("FORCE_CPU_POWER", "FORCE_RAM_POWER", "PUE")}
    outputs = [
        subprocess.run(
            [sys.executable, "-c", program], cwd=cwd, env=plain | env, capture_output=True, text=True, check=True
        ).stdout
        for cwd, env in ((tmp_path, {"HOME": str(tmp_path)} | settings), (Path(root), {"HOME": "/nonexistent"}))
    ]
    assert outputs[0] == outputs[1] != ""


def test_without_codecarbon_the_estimate_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "codecarbon"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with pytest.raises(NotMeasured, match="codecarbon is not installed"):
        assumed_watts()
    meter = ModelledEnergy()
    assert meter.sample() == meter.edge() == meter.facts() == {}
    assert set(meter.missing()) == {"cpu_energy_modelled_joules", "ram_energy_modelled_joules"}


def test_importing_the_meters_imports_neither_codecarbon_nor_pynvml() -> None:
    program = (
        "import cprbench.meters.cpu, cprbench.meters.carbon, cprbench.meters.device, sys\n"
        "raise SystemExit(str({'codecarbon', 'pynvml', 'torch', 'pandas'} & set(sys.modules)))"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True
    )
    assert done.stderr.strip() == "set()"
