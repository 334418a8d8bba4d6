"""CO2 of a run: kWh x intensity of the grid x PUE, each factor stored with where it comes from.

The intensity is the user's own, or a country's annual average from the table that codecarbon ships. The table
is read as a file: none of codecarbon's code runs, so no network and no setting of it can change a number.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from cprbench.errors import SpecError
from cprbench.meters.energy import NotMeasured, Source, SpanKey, reading
from cprbench.spec import Reading

JOULES_PER_KWH = 3.6e6
_TABLE = "data/private_infra/global_energy_mix.json"
NO_FACTORS = "no country or carbon intensity given: pass --country or --carbon-intensity"


@dataclass(frozen=True)
class CarbonFactors:
    """What turns kWh into kg of CO2: grams per kWh of the grid, and PUE (data centre / its computers)."""

    intensity_g_per_kwh: float
    source: str
    year: int | None
    pue: float = 1.0

    def kilograms(self, kwh: float) -> float:
        """Return kg of CO2 for an energy in kWh."""
        return kwh * self.intensity_g_per_kwh * self.pue / 1000

    def facts(self) -> dict[str, Any]:
        """Return the factors by name, for the record."""
        return asdict(self)


def factors(country: str | None, intensity: float | None, pue: float = 1.0) -> CarbonFactors | None:
    """Return the factors of a country (ISO 3166, "FRA") or of an intensity (g/kWh); None without either.

    Raises SpecError for an unknown country, for both at once, and for an intensity or PUE that cannot be.
    """
    if not (math.isfinite(pue) and pue >= 1):
        raise SpecError(f"pue is {pue}: a data centre takes at least what its computers take. Give 1 or more.")
    if country is not None and intensity is not None:
        raise SpecError(f"--country {country} and --carbon-intensity {intensity} are both given. Give one of them.")
    if intensity is not None:
        if not (math.isfinite(intensity) and intensity > 0):
            raise SpecError(f"--carbon-intensity is {intensity}. Give grams of CO2 per kWh, above 0.")
        return CarbonFactors(float(intensity), "given with --carbon-intensity", None, pue)
    return None if country is None else _of_country(country, pue)


def co2_reading(key: SpanKey, energies: Sequence[Reading], given: CarbonFactors | None) -> Reading:
    """Return co2_kg of a span from its energies in joules (GPU boards, or CPU and RAM), with every factor.

    The source is that of the energies; where one is modelled, so is the result.
    """
    lacking = [f"{energy.quantity}: {energy.why_missing}" for energy in energies if energy.value is None]
    if lacking or not energies:
        return reading(key, "co2_kg", "modelled", NotMeasured("; ".join(lacking) or "no energy was measured"))
    if given is None:
        return reading(key, "co2_kg", "modelled", NotMeasured(NO_FACTORS))
    kwh = sum(energy.value or 0.0 for energy in energies) / JOULES_PER_KWH
    sources: list[Source] = [energy.source for energy in energies if energy.source is not None]
    source: Source = "modelled" if "modelled" in sources else sources[0]
    return reading(key, "co2_kg", source, given.kilograms(kwh), (), kwh=kwh, factors=given.facts())


def _of_country(country: str, pue: float) -> CarbonFactors:
    spec = importlib.util.find_spec("codecarbon")
    if spec is None or not spec.submodule_search_locations:
        raise SpecError(
            f"--country {country} needs codecarbon's table, and codecarbon is not installed. "
            "Install it (pip install codecarbon), or give --carbon-intensity."
        )
    path = Path(spec.submodule_search_locations[0]) / _TABLE
    try:
        table: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SpecError(f"{path} cannot be read ({error}). Give --carbon-intensity instead.") from None
    entry = table.get(country)
    if entry is None:
        raise SpecError(f"--country {country!r} is not in codecarbon's table. {_nearest(country, table)}")
    intensity, year = entry.get("carbon_intensity"), entry.get("year")
    if not isinstance(intensity, int | float) or not math.isfinite(intensity) or intensity <= 0:
        raise SpecError(f"{path}: {country} has carbon_intensity {intensity!r}. Give --carbon-intensity instead.")
    version, name = metadata.version("codecarbon"), entry.get("country_name")
    source = f"codecarbon {version}: annual average of {country} ({name})"
    return CarbonFactors(float(intensity), source, int(year) if year is not None else None, pue)


def _nearest(country: str, table: dict[str, dict[str, Any]]) -> str:
    names = {code: str(entry.get("country_name")) for code, entry in table.items()}
    found = [code for code, name in names.items() if country.casefold() in (code.casefold(), name.casefold())]
    found = found or difflib.get_close_matches(country.upper(), names, n=3, cutoff=0.6)
    if not found:
        return "Give the three letters of ISO 3166, such as 'FRA'."
    return f"Did you mean {' or '.join(f'{code!r} ({names[code]})' for code in found)}?"
