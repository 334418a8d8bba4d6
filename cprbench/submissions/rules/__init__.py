"""What must hold of every run: rules by code, in the order in which they are told. I identity, P psi."""

from __future__ import annotations

from cprbench.submissions.dossier import Rule
from cprbench.submissions.rules import identity, psi

RULES: tuple[Rule, ...] = (*identity.RULES, *psi.RULES)
