"""What must hold of every run, by code: I identity, P psi, G gamma, F FLOPs and counts, H history, L what can be."""

from __future__ import annotations

from cprbench.submissions.dossier import Rule
from cprbench.submissions.rules import costs, history, identity, plausible, psi, recipe, trained, work

RULES: tuple[Rule, ...] = tuple(
    rule for module in (identity, psi, costs, trained, work, recipe, history, plausible) for rule in module.RULES
)
