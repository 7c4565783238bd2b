"""A ledger that is set back to an earlier commit, as by a restore, in a database whose application goes on."""

from dataclasses import dataclass
from datetime import datetime

import psycopg

KEEP = """
DROP SCHEMA IF EXISTS kept CASCADE;
CREATE SCHEMA kept;
CREATE TABLE kept.meter_events AS TABLE meterctl.meter_events;
CREATE TABLE kept.settlements AS TABLE meterctl.settlements;
CREATE TABLE kept.runs AS TABLE meterctl.runs;
CREATE TABLE kept.identity AS TABLE meterctl.identity;
CREATE TABLE kept.reconciliations AS TABLE meterctl.reconciliations;
CREATE TABLE kept.stripe_events AS TABLE meterctl.stripe_events;
CREATE TABLE kept.cursors AS TABLE meterctl.cursors;
CREATE TABLE kept.error_reports AS TABLE meterctl.error_reports;
CREATE TABLE kept.error_samples AS TABLE meterctl.error_samples;
CREATE TABLE kept.outbox AS SELECT id, event_id FROM meterctl.usage_outbox;
CREATE TABLE kept.stamps AS SELECT id, stripe_reported_at FROM usage_events
"""

SET_BACK = """
TRUNCATE meterctl.settlements, meterctl.runs, meterctl.identity, meterctl.reconciliations, meterctl.stripe_events,
         meterctl.cursors, meterctl.error_samples, meterctl.error_reports;
DELETE FROM meterctl.meter_events;
INSERT INTO meterctl.meter_events OVERRIDING SYSTEM VALUE TABLE kept.meter_events;
INSERT INTO meterctl.settlements OVERRIDING SYSTEM VALUE TABLE kept.settlements;
INSERT INTO meterctl.runs OVERRIDING SYSTEM VALUE TABLE kept.runs;
INSERT INTO meterctl.identity TABLE kept.identity;
INSERT INTO meterctl.reconciliations OVERRIDING SYSTEM VALUE TABLE kept.reconciliations;
INSERT INTO meterctl.stripe_events TABLE kept.stripe_events;
INSERT INTO meterctl.cursors TABLE kept.cursors;
INSERT INTO meterctl.error_reports TABLE kept.error_reports;
INSERT INTO meterctl.error_samples OVERRIDING SYSTEM VALUE TABLE kept.error_samples;
SELECT setval(pg_get_serial_sequence('meterctl.meter_events', 'id'), max(id) + 1, false) FROM meterctl.meter_events;
SELECT setval(pg_get_serial_sequence('meterctl.settlements', 'id'), max(id) + 1, false) FROM kept.settlements;
SELECT setval(pg_get_serial_sequence('meterctl.runs', 'id'), max(id) + 1, false) FROM kept.runs;
SELECT setval(pg_get_serial_sequence('meterctl.error_samples', 'id'), max(id) + 1, false) FROM kept.error_samples;
SELECT setval(pg_get_serial_sequence('meterctl.reconciliations', 'id'), max(id) + 1, false) FROM kept.reconciliations;
UPDATE meterctl.usage_outbox AS o SET event_id = k.event_id FROM kept.outbox AS k WHERE k.id = o.id;
UPDATE usage_events AS u
SET stripe_reported_at = (SELECT s.stripe_reported_at FROM kept.stamps AS s WHERE s.id = u.id);
UPDATE meterctl.identity SET timeline = 'another'
"""
"""Usage that came since is there again, under its ids, without a stamp: the application has brought it back.

Sequences count again from where they were: ids of events and runs come a second time.
"""


@dataclass(kw_only=True)
class Past:
    """What the ledger was at an instant. `kept_at` None: nothing is kept."""

    connection: psycopg.Connection
    kept_at: datetime | None = None

    def keep(self, now: datetime) -> None:
        """Keep the ledger and the stamps as they are."""
        with self.connection.transaction():
            self.connection.execute(KEEP)
        self.kept_at = now

    def set_back(self) -> None:
        """Lose everything since, under another mark of identity."""
        with self.connection.transaction():
            self.connection.execute(SET_BACK)
