"""CO2: three factors, each with its origin; nothing is assumed that nobody gave."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest

from cprbench.errors import SpecError
from cprbench.meters.carbon import CarbonFactors, co2_reading, factors
from cprbench.spec import Reading

needs_table = pytest.mark.skipif(importlib.util.find_spec("codecarbon") is None, reason="codecarbon is not installed")


def energy(joules: float | None, quantity: str = "gpu_energy_joules", source: str = "counter") -> Reading:
    given = {"value": joules, "source": source} if joules is not None else {"value": None, "why_missing": "no NVML"}
    return Reading.model_validate({"phase": "billed", "quantity": quantity} | given)


def test_neither_country_nor_intensity_is_no_factor_and_no_co2() -> None:
    assert factors(None, None) is None
    reading = co2_reading(("billed", 1), [energy(3.6e6)], None)
    assert reading.value is None
    assert reading.why_missing == "no country or carbon intensity given: pass --country or --carbon-intensity"


def test_co2_is_energy_times_intensity_times_pue_and_stores_each_of_them() -> None:
    given = factors(None, 200.0, pue=1.5)
    assert given == CarbonFactors(200.0, "given with --carbon-intensity", None, 1.5)
    reading = co2_reading(("billed", 1), [energy(7.2e6)], given)
    assert reading.value == pytest.approx(2 * 0.2 * 1.5)
    assert reading.quantity == "co2_kg"
    assert reading.source == "counter"
    assert reading.detail == {
        "kwh": 2.0,
        "factors": {
            "intensity_g_per_kwh": 200.0,
            "source": "given with --carbon-intensity",
            "year": None,
            "pue": 1.5,
        },
    }


@needs_table
def test_a_country_s_intensity_names_its_table_and_its_year() -> None:
    found = factors("FRA", None)
    assert found is not None
    assert found.year == 2023
    assert 20 < found.intensity_g_per_kwh < 100
    assert found.source.startswith("codecarbon ")
    assert "annual average of FRA (France)" in found.source
    elsewhere = factors("USA", None, pue=1.2)
    assert elsewhere is not None
    assert elsewhere.kilograms(1.0) == pytest.approx(elsewhere.intensity_g_per_kwh * 1.2 / 1000)


@needs_table
@pytest.mark.parametrize(
    ("country", "hint"),
    [
        ("DUE", "Did you mean 'DEU' (Germany)"),
        ("fra", "Did you mean 'FRA' (France)?"),
        ("France", "Did you mean 'FRA' (France)?"),
        ("FR", "'FRA' (France)"),
        ("", "Give the three letters of ISO 3166"),
        ("???", "Give the three letters of ISO 3166"),
    ],
)
def test_an_unknown_country_is_an_error_that_names_the_nearest(country: str, hint: str) -> None:
    with pytest.raises(SpecError) as caught:
        factors(country, None)
    assert f"--country {country!r} is not in codecarbon's table" in str(caught.value)
    assert hint in str(caught.value)


def test_a_country_without_the_table_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SpecError, match=r"codecarbon is not installed\. .*--carbon-intensity"):
        factors("FRA", None)


@pytest.mark.parametrize("intensity", [0.0, -5.0, math.nan, math.inf])
def test_an_intensity_that_cannot_be_is_refused(intensity: float) -> None:
    with pytest.raises(SpecError, match="Give grams of CO2 per kWh, above 0"):
        factors(None, intensity)


@pytest.mark.parametrize("pue", [0.0, 0.99, -1.0, math.nan, math.inf])
def test_a_pue_below_one_is_refused(pue: float) -> None:
    with pytest.raises(SpecError, match="pue is"):
        factors(None, 100.0, pue)


def test_country_and_intensity_at_once_are_refused() -> None:
    with pytest.raises(SpecError, match="Give one of them"):
        factors("FRA", 100.0)


def test_an_energy_that_was_not_measured_has_no_co2() -> None:
    given = factors(None, 200.0)
    both = [energy(3.6e6, "cpu_energy_joules", "rapl"), energy(None, "ram_energy_joules")]
    reading = co2_reading(("billed", 1), both, given)
    assert (reading.value, reading.why_missing) == (None, "ram_energy_joules: no NVML")
    assert co2_reading(("billed", 1), [], given).why_missing == "no energy was measured"


def test_co2_of_a_modelled_energy_is_modelled() -> None:
    parts = [energy(1.8e6, "cpu_energy_joules", "rapl"), energy(1.8e6, "ram_energy_modelled_joules", "modelled")]
    reading = co2_reading(("train", 2), parts, factors(None, 500.0))
    assert (reading.source, reading.attempt) == ("modelled", 2)
    assert reading.value == pytest.approx(0.5)


@needs_table
def test_a_broken_table_is_an_error_and_not_a_guess(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cprbench.meters.carbon as carbon

    table = tmp_path / "table.json"
    monkeypatch.setattr(carbon, "_TABLE", str(table))
    with pytest.raises(SpecError, match="cannot be read"):
        factors("FRA", None)
    for broken in ("0", "-3", "null", '"56"', "NaN"):
        table.write_text(f'{{"FRA": {{"carbon_intensity": {broken}, "year": 2023}}}}')
        with pytest.raises(SpecError, match="has carbon_intensity"):
            factors("FRA", None)
