"""spectrum: what a Spectrum scan names trains. The baseline of partial tuning that reads weights, not gradients.

`scan` is a file that Spectrum wrote: its JSON of signal-to-noise ratios, from which submodules are taken by the mean
ratio of their modules up to k, or its YAML of `unfrozen_parameters`, which trains exactly what it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, ClassVar

from cprbench.adapt.methods import Context, Prepared, Target
from cprbench.adapt.methods.k_set import KSet, train_tensors
from cprbench.adapt.methods.partial import Partial
from cprbench.blueprint.exchange import from_spectrum, scores_from_spectrum
from cprbench.blueprint.files import read_bytes
from cprbench.errors import MethodError, SpecError

if TYPE_CHECKING:
    from cprbench.adapt.models import LoadedModel


@dataclass(frozen=True)
class Spectrum(KSet):
    """An imported set. `scan`: the file; `k` and `embed` hold for a JSON scan, a YAML file says its set itself."""

    scan: str = ""

    name: ClassVar[str] = "spectrum"
    learning_rates: ClassVar[Mapping[str, float]] = Partial.learning_rates
    chooses: ClassVar[bool] = False  # the scan was made elsewhere
    files: ClassVar[tuple[str, ...]] = ("scan",)

    def check(self, target: Target) -> None:
        """Refuse a missing file and one that names nothing of this model; for a JSON scan, a k that is too small."""
        if not self.scan:
            raise MethodError("method 'spectrum' needs a scan: --set spectrum.scan=snr_results.json, or its YAML.")
        text = self._text()
        if is_json(text):
            super().check(target)
            ranked(text, target.tensors)
        else:
            from_spectrum(text, target.tensors)

    def prepare(self, loaded: LoadedModel, context: Context) -> Prepared:
        """Return the model with the imported set training."""
        text = self._text()
        cells = loaded.partition.parameters
        if is_json(text):
            return self.train_first(loaded, ranked(text, cells))
        named = from_spectrum(text, cells)
        wanted = set(named.parameters)
        tensors = {cell: [n for n in names if n in wanted] for cell, names in cells.items()}
        notes = {"partly_trained": list(named.partly), "unmatched": list(named.unmatched)}
        return train_tensors(loaded, tensors, notes)

    def _text(self) -> str:
        try:
            return read_bytes(Path(self.scan)).decode("utf-8")
        except UnicodeDecodeError as error:
            raise SpecError(f"spectrum.scan = {self.scan}: cannot be read ({error}).") from None


def is_json(text: str) -> bool:
    """Return whether a scan is Spectrum's JSON of ratios, not its YAML of names."""
    return text.lstrip().startswith("{")


def ranked(text: str, cells: Mapping[str, Sequence[str]]) -> list[str]:
    """Return the submodules that a scan scores, by the mean ratio of their modules, best first."""
    scores = scores_from_spectrum(text)
    modules = {
        cell: [n.removesuffix(".weight") for n in names if n.endswith(".weight")] for cell, names in cells.items()
    }
    found = {cell: [scores[name] for name in names if name in scores] for cell, names in modules.items()}
    means = {cell: fmean(ratios) for cell, ratios in found.items() if ratios}
    if not means:
        raise MethodError(f"the scan names no module of this model; its first is {next(iter(scores))!r:.80}.")
    return sorted(means, key=lambda cell: -means[cell])
