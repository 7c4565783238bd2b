"""What a table of the configuration cannot know alone: whether it fits the others."""

from collections.abc import Iterator, Mapping
from itertools import combinations

from meterctl.core.identifier import may_collide
from meterctl.settings.meters import MeterSettings, RowsMeter
from meterctl.settings.problems import did_you_mean, dotted

Fault = tuple[str, str]
"""(dotted key, what is wrong; what to do)."""


def faults_between(meters: Mapping[str, MeterSettings], lookups: set[str]) -> Iterator[Fault]:
    """Given the meters that are sound by themselves and the names of all lookups, yield what does not fit together."""
    enabled = {key: meter for key, meter in meters.items() if meter.enabled}
    for key, meter in meters.items():
        yield from _unknown_lookups(key, meter, lookups)
    for (one_key, one), (key, meter) in combinations(enabled.items(), 2):
        if one.event_name == meter.event_name:
            other = dotted(("meters", one_key))
            what = f'is "{meter.event_name}" as in {other}; enable one of them, or give each its own'
            yield dotted(("meters", key, "event_name")), what
        if isinstance(one, RowsMeter) and isinstance(meter, RowsMeter):
            yield from _collisions(one_key, one, key, meter)
            yield from _shared_stamps(one_key, one, key, meter)


def _unknown_lookups(key: str, meter: MeterSettings, lookups: set[str]) -> Iterator[Fault]:
    for position, payer in enumerate(meter.payers):
        if payer.lookup not in lookups:
            yield (
                dotted(("meters", key, "payers", position, "lookup")),
                f"there is no [{dotted(('lookups', payer.lookup))}]{did_you_mean(payer.lookup, lookups)}",
            )


def _shared_stamps(one_key: str, one: RowsMeter, key: str, meter: RowsMeter) -> Iterator[Fault]:
    """A row stamped for one meter is done for every meter that reads the same stamp."""
    same_table = one.table_parts[-1] == meter.table_parts[-1] and (
        one.table == meter.table or min(len(one.table_parts), len(meter.table_parts)) == 1
    )
    same_stamp = same_table and one.reported_at == meter.reported_at
    if same_stamp and (one.where is None or meter.where is None or one.where == meter.where):
        yield (
            dotted(("meters", key, "reported_at")),
            (
                f'is "{meter.reported_at}" of "{meter.table}" as in {dotted(("meters", one_key))}; a row reported for '
                "one would not reach the other; give each a column of its own, or a `where` that parts the rows"
            ),
        )


def _collisions(one_key: str, one: RowsMeter, key: str, meter: RowsMeter) -> Iterator[Fault]:
    if may_collide(one.identifier_template, meter.identifier_template):
        yield (
            dotted(("meters", key, "identifier")),
            (
                f'"{meter.identifier}" can give the same text as "{one.identifier}" of {dotted(("meters", one_key))}, '
                f'and Stripe would drop one of two; begin it with a text of its own, like "{key}-{{{meter.id}}}"'
            ),
        )
