-- The tables the shipped configuration expects, as an application might have them.

CREATE TABLE organizations (
    id   text PRIMARY KEY,
    name text NOT NULL
);

CREATE TABLE subscriptions (
    id                     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    user_id                text,
    organization_id        text,
    stripe_customer_id     text,
    stripe_subscription_id text,
    status                 text NOT NULL DEFAULT 'active',
    started_at             timestamptz,
    ended_at               timestamptz,
    current_period_start   timestamptz,
    current_period_end     timestamptz,
    stripe_event_at        timestamptz
);
CREATE INDEX ON subscriptions (user_id);
CREATE INDEX ON subscriptions (organization_id);

CREATE TABLE usage_events (
    id                 bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    workspace_id       text NOT NULL,
    user_id            text NOT NULL,
    event_type         text NOT NULL DEFAULT 'suggestion',
    quantity           numeric DEFAULT 1,
    created_at         timestamptz NOT NULL DEFAULT now(),
    stripe_reported_at timestamptz
);
CREATE INDEX usage_events_unreported ON usage_events (created_at, id) WHERE stripe_reported_at IS NULL;

CREATE TABLE sensors (
    id              text PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations (id),
    is_active       boolean NOT NULL DEFAULT true
);

CREATE TABLE readings (
    id              bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    organization_id text NOT NULL REFERENCES organizations (id),
    sensor_id       text NOT NULL REFERENCES sensors (id),
    temperature_c   numeric NOT NULL,
    recorded_at     timestamptz NOT NULL,
    UNIQUE (sensor_id, recorded_at)
);
