-- Settling by totals: what was read of Stripe's summaries, what was decided on it, and the indexes that find both.

-- Evidence. One row is one unbroken series of equal reads of one customer and minute; what it decided is kept for good.
CREATE TABLE meterctl.settlements (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_name     text NOT NULL,
    customer       text NOT NULL,
    minute         timestamptz NOT NULL,        -- the window is this minute
    stripe_total   numeric NOT NULL,            -- S
    accepted_total numeric NOT NULL,            -- C: what the ledger counts as accepted in the window
    doubt_ids      bigint[] NOT NULL,           -- D: its doubtful events
    read_count     integer NOT NULL,
    first_seen     timestamptz NOT NULL,
    last_seen      timestamptz NOT NULL,
    decision       text,                        -- NULL: the series still grows
    decided_at     timestamptz,
    present_ids    bigint[] NOT NULL DEFAULT '{}',
    absent_ids     bigint[] NOT NULL DEFAULT '{}',
    run_id         bigint,

    CONSTRAINT decision_is_known CHECK (
        decision IN ('settled', 'broken', 'shortfall', 'foreign', 'ambiguous', 'imprecise')),
    CONSTRAINT decided_says_when CHECK ((decision IS NULL) = (decided_at IS NULL)),
    CONSTRAINT series_goes_forward CHECK (first_seen <= last_seen AND read_count > 0),
    CONSTRAINT one_read_decides_nothing CHECK (
        decision IN ('broken') OR decision IS NULL
        OR (read_count > 1 AND last_seen - first_seen >= interval '1 hour'))
);

CREATE UNIQUE INDEX one_series_per_window ON meterctl.settlements (event_name, customer, minute)
    WHERE decision IS NULL;

-- What totals, or a person, found Stripe not to have: from then on a known identifier proves nothing.
ALTER TABLE meterctl.meter_events ADD COLUMN proven_absent boolean NOT NULL DEFAULT false;

-- The doubts of a customer and minute: newer events of that minute wait for them.
CREATE INDEX doubts ON meterctl.meter_events (event_name, customer, sent_timestamp) WHERE state = 'in_doubt';

-- Everything of a minute. Events enter the ledger in about this order, so a few blocks per range are enough.
CREATE INDEX sent_lately ON meterctl.meter_events USING brin (sent_timestamp) WITH (autosummarize = on);
