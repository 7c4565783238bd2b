-- What Stripe tells by events: the events themselves, how far its lists were read, what it said about meter events after
-- it had answered 200, and what is known of subscriptions.

CREATE TABLE meterctl.stripe_events (
    event_id      text PRIMARY KEY,
    type          text NOT NULL,
    api_version   text,                     -- NULL: a thin event, which has none
    livemode      boolean NOT NULL,
    account       text,                     -- the account it is about, where it says so
    created       timestamptz NOT NULL,
    payload       jsonb NOT NULL,           -- as it came; of a thin event, with its data once they were fetched
    raw           bytea,                    -- the very bytes that were received, and their signature, where kept
    signature     text,
    source        text NOT NULL,
    status        text NOT NULL DEFAULT 'received',
    attempt_count integer NOT NULL DEFAULT 0,
    outcome       text,                     -- what processing it came to, or why it was ignored
    error         text,                     -- why it failed
    received_at   timestamptz NOT NULL DEFAULT now(),
    processed_at  timestamptz,              -- of the last attempt

    CONSTRAINT source_is_known CHECK (source IN ('endpoint', 'pull', 'file')),
    CONSTRAINT status_is_known CHECK (status IN ('received', 'processed', 'failed', 'ignored')),
    CONSTRAINT failed_has_error CHECK (status <> 'failed' OR error IS NOT NULL)
);

CREATE INDEX unprocessed ON meterctl.stripe_events (created, event_id) WHERE status IN ('received', 'failed');
CREATE INDEX not_handled ON meterctl.stripe_events (type) WHERE status = 'ignored' AND outcome = 'not handled';
CREATE INDEX newest_stripe_events ON meterctl.stripe_events (created DESC, event_id);

-- For an application's endpoint, which has verified the signature, in a transaction of its own or its caller's. Returns
-- whether the event is new. The role that calls it needs nothing but this function.
CREATE FUNCTION meterctl.store_stripe_event(payload jsonb, raw bytea DEFAULT NULL, signature text DEFAULT NULL)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $function$
DECLARE
    is_thin boolean := payload ->> 'object' = 'v2.core.event';
    created timestamptz;
BEGIN
    IF payload ->> 'object' IS NULL OR payload ->> 'object' NOT IN ('event', 'v2.core.event')
        OR coalesce(payload ->> 'id', '') !~ '^[!-~]{1,255}$' OR coalesce(payload ->> 'type', '') !~ '^[!-~]{1,255}$'
        OR jsonb_typeof(payload -> 'livemode') IS DISTINCT FROM 'boolean'
        OR jsonb_typeof(payload -> 'created') IS DISTINCT FROM (CASE WHEN is_thin THEN 'string' ELSE 'number' END)
    THEN
        RAISE invalid_parameter_value USING
            MESSAGE = 'store_stripe_event: the payload is no event of Stripe''s',
            HINT = 'Give the whole JSON document that Stripe sent: it has id, object, type, created and livemode.';
    END IF;
    created := CASE WHEN is_thin THEN (payload ->> 'created')::timestamptz
                    ELSE to_timestamp((payload ->> 'created')::numeric) END;
    IF created NOT BETWEEN 'epoch' AND '9000-01-01' THEN
        RAISE invalid_parameter_value USING MESSAGE = 'store_stripe_event: the event was created at no instant there is';
    END IF;
    INSERT INTO meterctl.stripe_events (
        event_id, type, api_version, livemode, account, created, payload, raw, signature, source)
    VALUES (
        payload ->> 'id', payload ->> 'type', payload ->> 'api_version', (payload ->> 'livemode')::boolean,
        coalesce(nullif(payload ->> 'account', ''), nullif(payload ->> 'context', '')), created, payload, raw, signature,
        'endpoint')
    ON CONFLICT (event_id) DO NOTHING;
    RETURN FOUND;
END
$function$;
REVOKE ALL ON FUNCTION meterctl.store_stripe_event(jsonb, bytea, text) FROM PUBLIC;

-- How far Stripe's lists of events were read, each type by itself: one that is handled from today on begins anew.
CREATE TABLE meterctl.cursors (
    type       text NOT NULL,
    account    text NOT NULL,
    livemode   boolean NOT NULL,
    read_until timestamptz NOT NULL,        -- what was created before has been listed
    PRIMARY KEY (type, account, livemode)
);

-- What Stripe's validation said after a 200: one row a report.
CREATE TABLE meterctl.error_reports (
    event_id         text PRIMARY KEY,      -- of the Stripe event
    event_name       text,                  -- the meter's; NULL: no meter of ours
    error_count      integer NOT NULL,
    sample_count     integer NOT NULL,      -- errors that it names
    validation_start timestamptz NOT NULL,
    validation_end   timestamptz NOT NULL,
    created          timestamptz NOT NULL,
    noted_at         timestamptz NOT NULL,
    told             boolean NOT NULL DEFAULT false, -- a run lived to name it
    CONSTRAINT samples_are_errors CHECK (sample_count BETWEEN 0 AND error_count)
);
CREATE INDEX untold_reports ON meterctl.error_reports (event_name) WHERE NOT told;

-- One row for each error that a report names, and each event of ours that it may mean.
CREATE TABLE meterctl.error_samples (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id   text NOT NULL REFERENCES meterctl.error_reports (event_id),
    named      text,                        -- as Stripe names the request: by identifier or by idempotency key
    code       text NOT NULL,
    message    text,
    meter_event_id bigint REFERENCES meterctl.meter_events (id), -- NULL: none of ours
    verdict    text,                        -- what became of the event; NULL: not decided yet
    CONSTRAINT verdict_is_known CHECK (verdict IN ('rejected', 'explained', 'closed', 'foreign')),
    CONSTRAINT foreign_means_none_of_ours CHECK (coalesce(verdict = 'foreign', false) = (meter_event_id IS NULL))
);
CREATE UNIQUE INDEX one_sample_per_event ON meterctl.error_samples (event_id, meter_event_id);
CREATE INDEX samples_of_event ON meterctl.error_samples (meter_event_id) WHERE meter_event_id IS NOT NULL;

-- What events told of a subscription: the newest of each kind, whatever the order they came in.
CREATE TABLE meterctl.subscription_facts (
    subscription_id text PRIMARY KEY,
    facts           jsonb NOT NULL
);
