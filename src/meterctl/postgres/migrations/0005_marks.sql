-- By what a ledger knows its database again, and what `db recover` has done.

ALTER TABLE meterctl.identity
    ADD COLUMN system_identifier text,          -- of the cluster; NULL in each of the three: not readable here
    ADD COLUMN timeline          text,          -- changes with every promotion and every restore to a point in time
    ADD COLUMN database_oid      text,
    ADD COLUMN recover_since     timestamptz,   -- not NULL: `db recover` has begun and not ended
    ADD COLUMN recovered_at      timestamptz;
