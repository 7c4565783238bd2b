-- Usage that an application counts in its own transactions, and what finds a customer's last level.

CREATE TABLE meterctl.usage_outbox (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    meter       text NOT NULL,              -- the meter's key in the configuration
    subject     text NOT NULL,
    quantity    numeric NOT NULL,
    occurred_at timestamptz NOT NULL,
    event_id    bigint REFERENCES meterctl.meter_events (id) ON DELETE SET NULL, -- what stands for it; NULL: nothing yet

    CONSTRAINT quantity_can_be_counted CHECK (quantity >= 0 AND quantity < 'Infinity')
);

-- What is due, hour by hour; what is done leaves by the other.
CREATE INDEX uncollected ON meterctl.usage_outbox (meter, occurred_at, id) WHERE event_id IS NULL;
CREATE INDEX collected ON meterctl.usage_outbox (event_id) WHERE event_id IS NOT NULL;

-- By these a repeated call is known. They live a day longer than the oldest usage that `record_usage` takes.
CREATE TABLE meterctl.usage_keys (
    meter       text NOT NULL,
    dedup_key   text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (meter, dedup_key)
);
CREATE INDEX oldest_keys ON meterctl.usage_keys (recorded_at);

-- For the application's own transaction: the usage is billed if that commits, and only then. Returns whether it was
-- counted; not where the key has been counted before. The role that calls it needs nothing but this function.
CREATE FUNCTION meterctl.record_usage(
    meter text, subject text, quantity numeric, occurred_at timestamptz DEFAULT now(), dedup_key text DEFAULT NULL
) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
BEGIN
    IF meter IS NULL OR subject IS NULL OR quantity IS NULL OR occurred_at IS NULL THEN
        RAISE null_value_not_allowed USING MESSAGE = 'record_usage: meter, subject, quantity and occurred_at must be given';
    END IF;
    IF quantity < 0 OR quantity >= 'Infinity' THEN
        RAISE invalid_parameter_value USING MESSAGE = format('record_usage: the quantity %s is negative or no number', quantity);
    END IF;
    IF occurred_at < now() - interval '35 days' OR occurred_at > now() + interval '5 minutes' THEN
        RAISE invalid_parameter_value USING
            MESSAGE = format('record_usage: %s is more than 35 days ago, or ahead', occurred_at),
            HINT = 'Stripe takes usage of the last 35 days only.';
    END IF;
    IF dedup_key IS NOT NULL THEN
        IF occurred_at = now() THEN
            RAISE invalid_parameter_value USING
                MESSAGE = 'record_usage: a dedup_key needs an occurred_at of its own',
                HINT = 'Give the instant of the usage itself: a call repeated after weeks must be too old, not new.';
        END IF;
        INSERT INTO meterctl.usage_keys (meter, dedup_key) VALUES (record_usage.meter, record_usage.dedup_key)
        ON CONFLICT DO NOTHING;
        IF NOT FOUND THEN
            RETURN false;
        END IF;
    END IF;
    INSERT INTO meterctl.usage_outbox (meter, subject, quantity, occurred_at)
    VALUES (record_usage.meter, record_usage.subject, record_usage.quantity, record_usage.occurred_at);
    RETURN true;
END
$function$;
REVOKE ALL ON FUNCTION meterctl.record_usage(text, text, numeric, timestamptz, text) FROM PUBLIC;

-- A level may be sent behind a newer one because a person insisted.
ALTER TABLE meterctl.meter_events ADD COLUMN insisted boolean NOT NULL DEFAULT false;

-- Levels and counted windows by customer, in the order of what they are about.
CREATE INDEX windows ON meterctl.meter_events (event_name, customer, sent_timestamp) WHERE window_start IS NOT NULL;
