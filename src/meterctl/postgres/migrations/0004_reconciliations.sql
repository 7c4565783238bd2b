-- Comparisons of the ledger with Stripe's totals: one row for each run, meter and customer, kept for good.

CREATE TABLE meterctl.reconciliations (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    run_id       bigint NOT NULL,
    event_name   text NOT NULL,
    customer     text NOT NULL,
    range_start  timestamptz NOT NULL,
    range_end    timestamptz NOT NULL,
    ledger_total numeric NOT NULL,              -- accepted events of the range
    stripe_total numeric NOT NULL,
    read_count   integer NOT NULL,              -- what it cost
    differences  jsonb NOT NULL,                -- each with its span, totals, cause and command
    proven       boolean NOT NULL,              -- the totals of every day of the range are equal
    read_at      timestamptz NOT NULL,          -- before the first total was read
    proven_from  timestamptz NOT NULL,          -- what is proven of the customer after this comparison, with earlier
    proven_until timestamptz NOT NULL,          --   ones where this one looked at less
    proven_at    timestamptz NOT NULL,          -- what was accepted later than that is not among it
    latest       boolean NOT NULL,              -- the customer's newest comparison

    CONSTRAINT range_goes_forward CHECK (range_start < range_end),
    CONSTRAINT proof_goes_forward CHECK (proven_from <= proven_until),
    CONSTRAINT proven_has_no_difference CHECK (proven = (differences = '[]'))
);

CREATE UNIQUE INDEX latest_reconciliation ON meterctl.reconciliations (event_name, customer) WHERE latest;
