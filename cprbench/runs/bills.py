"""What a run billed in the attempt that ended it: the measure of runs that have to meet its bill."""

from __future__ import annotations

from cprbench.meters.carbon import JOULES_PER_KWH
from cprbench.spec import RunRecord, billed_phases


def last_bill(record: RunRecord, resource: str) -> float | None:
    """Return what the last attempt billed of flops, device_hours or energy_kwh; None where it was not measured.

    gamma is over all attempts: a leader that crashed once would pay its followers for that.
    """
    total: float | None = getattr(record.gamma, resource)
    if record.attempts == 1 or total is None:
        return total
    if resource == "device_hours":
        last, all_of_them = (record.seconds.get(name) for name in ("billed_last_attempt", "billed"))
        return total * last / all_of_them if last is not None and all_of_them else None
    quantity = (
        "flops" if resource == "flops" else "gpu_energy_joules" if record.environment.devices else "cpu_energy_joules"
    )
    phases = billed_phases(record.spec.stop)
    own = [
        r.value
        for r in record.readings
        if r.attempt == record.attempts and r.phase in phases and r.quantity == quantity
    ]
    known = [value for value in own if value is not None]
    if len(known) < len(own) or not known:
        return None
    return sum(known) if resource == "flops" else sum(known) / JOULES_PER_KWH
