-- The ledger: every meter event ever decided on, and what became of it. The protocol's states and rules are named
-- constraints here, so that no program, ours included, can write what the protocol forbids.

CREATE TABLE meterctl.meter_events (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    meter           text NOT NULL,          -- the meter's key in the configuration
    event_name      text NOT NULL,          -- Stripe's name of the meter
    identifier      text UNIQUE,            -- NULL only where a local rejection could not make one
    customer        text,                   -- Stripe customer id, frozen at collection
    value           numeric,                -- what is sent
    quantity        numeric,                -- units of the rows this event stands for
    occurred_at     timestamptz,
    sent_timestamp  timestamptz,            -- what is sent as `timestamp`: whole seconds
    payload         jsonb,                  -- what is sent as `payload`: strings only
    subject         text,
    source_row_id   text,                   -- the usage row's id as text
    window_start    timestamptz,
    period_end      timestamptz,            -- end of the billing period the usage belongs to; NULL: unknown
    state           text NOT NULL,
    transport       text NOT NULL DEFAULT 'single',
    attempt_count   integer NOT NULL DEFAULT 0,
    answers_heard   integer NOT NULL DEFAULT 0,
    claimed_from    text,                   -- the state before `sending`
    claimed_at      timestamptz,
    doubt_since     timestamptz,            -- start of the oldest attempt whose fate is unknown, this one included
    ever_in_doubt   boolean NOT NULL DEFAULT false,
    last_attempt_at timestamptz,
    accepted_at     timestamptz,
    settled_by      text,
    held_reason     text,                   -- not NULL: never claimed until a person acts
    late            boolean NOT NULL DEFAULT false,
    told            boolean NOT NULL DEFAULT false, -- a run lived to name this rejection or expiry
    run_id          bigint,                 -- the run of the last attempt; no foreign key, it is on the hot path
    request_id      text,
    error_code      text,
    error_message   text,
    replaces        bigint UNIQUE REFERENCES meterctl.meter_events (id),
    closed_reason   text,                   -- what the person said who retried or waived it
    collected_at    timestamptz NOT NULL,
    livemode        boolean NOT NULL,
    account         text NOT NULL,

    CONSTRAINT state_is_known CHECK (state IN (
        'pending', 'sending', 'in_doubt', 'accepted', 'rejected', 'replaced', 'waived', 'expired', 'superseded',
        'cancelled')),
    CONSTRAINT pending_has_no_doubt CHECK (state <> 'pending' OR doubt_since IS NULL),
    CONSTRAINT rejected_has_no_doubt CHECK (state <> 'rejected' OR doubt_since IS NULL),
    CONSTRAINT accepted_has_no_doubt CHECK (state <> 'accepted' OR doubt_since IS NULL),
    CONSTRAINT in_doubt_has_doubt CHECK (state <> 'in_doubt' OR (doubt_since IS NOT NULL AND ever_in_doubt)),
    CONSTRAINT sending_has_claim CHECK (
        (state = 'sending') = (claimed_from IS NOT NULL) AND (state = 'sending') = (claimed_at IS NOT NULL)),
    CONSTRAINT sending_has_doubt_and_run CHECK (
        state <> 'sending' OR (doubt_since IS NOT NULL AND run_id IS NOT NULL AND attempt_count > 0)),
    CONSTRAINT claimed_from_is_sendable CHECK (claimed_from IN ('pending', 'in_doubt')),
    CONSTRAINT claim_from_doubt_was_in_doubt CHECK (claimed_from IS DISTINCT FROM 'in_doubt' OR ever_in_doubt),
    CONSTRAINT accepted_says_when_and_how CHECK (
        (state IN ('accepted', 'cancelled') AND accepted_at IS NOT NULL AND settled_by IS NOT NULL)
        OR state NOT IN ('accepted', 'cancelled')),
    CONSTRAINT settled_by_is_known CHECK (settled_by IN ('answer', 'already_exists', 'totals', 'person')),
    CONSTRAINT rejected_has_code CHECK (state <> 'rejected' OR error_code IS NOT NULL),
    CONSTRAINT closed_has_reason CHECK (state NOT IN ('replaced', 'waived') OR closed_reason IS NOT NULL),
    CONSTRAINT only_local_rejections_lack_a_part CHECK (
        (identifier IS NOT NULL AND customer IS NOT NULL AND value IS NOT NULL AND quantity IS NOT NULL
            AND occurred_at IS NOT NULL AND sent_timestamp IS NOT NULL AND payload IS NOT NULL)
        OR (error_code LIKE 'local:%' AND state IN ('rejected', 'waived'))),
    CONSTRAINT answers_are_fewer_than_attempts CHECK (answers_heard BETWEEN 0 AND attempt_count),
    CONSTRAINT value_is_finite CHECK (value NOT IN ('NaN', 'Infinity', '-Infinity'))
);

-- I1: one usage row, one live event. The row comes first: it is also looked for under a meter's former key.
CREATE UNIQUE INDEX one_live_event_per_row ON meterctl.meter_events (source_row_id, meter)
    WHERE state <> 'replaced' AND source_row_id IS NOT NULL;

-- I5: one call at a time per customer and meter.
CREATE UNIQUE INDEX one_sending_per_lane ON meterctl.meter_events (event_name, customer, account)
    WHERE state = 'sending' AND transport = 'single';

-- What a run may claim, by lane, oldest first. History is in none of the partial indexes.
CREATE INDEX claimable ON meterctl.meter_events (event_name, customer, id)
    WHERE state IN ('pending', 'in_doubt') AND held_reason IS NULL;

CREATE INDEX not_at_rest ON meterctl.meter_events (event_name, state)
    WHERE state IN ('pending', 'sending', 'in_doubt', 'rejected', 'expired');

CREATE INDEX late_events ON meterctl.meter_events (event_name, accepted_at) WHERE late;

-- Events are appended and accepted in about the same order, so a few blocks per range are enough to count a month.
CREATE INDEX accepted_lately ON meterctl.meter_events USING brin (accepted_at);

CREATE TABLE meterctl.runs (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    command     text NOT NULL,
    mode        text NOT NULL,
    account     text NOT NULL,
    host        text NOT NULL,
    pid         integer NOT NULL,
    version     text NOT NULL,
    started_at  timestamptz NOT NULL,
    finished_at timestamptz,                -- NULL: still running, or died
    exit_code   integer,
    counts      jsonb,
    CONSTRAINT finished_has_exit_code CHECK ((finished_at IS NULL) = (exit_code IS NULL))
);

-- One ledger belongs to one Stripe account and one mode.
CREATE TABLE meterctl.identity (
    one      boolean PRIMARY KEY DEFAULT true CHECK (one),
    account  text NOT NULL,
    livemode boolean NOT NULL,
    since    timestamptz NOT NULL
);
