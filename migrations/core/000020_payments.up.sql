-- What payment policies will do later: one row per (policy, key). A row is
-- written before the position of the event that asked for it moves, and goes
-- when it has been done; doing it twice is harmless.
CREATE TABLE timers (
    policy   text        NOT NULL,
    key      text        NOT NULL,
    due_at   timestamptz NOT NULL, -- in the future also while a worker has it: then the end of its lease
    data     jsonb       NOT NULL,
    attempts integer     NOT NULL DEFAULT 0, -- failed in a row
    PRIMARY KEY (policy, key)
);
CREATE INDEX timers_due ON timers (due_at);

-- The simulated payment gateway. It stands for a system that is not ours, so
-- nothing outside the gateway reads or writes it.
CREATE SCHEMA simulated_gateway;

CREATE TABLE simulated_gateway.orders (
    id         text        PRIMARY KEY,
    receipt    text        NOT NULL, -- the order's id on our side
    amount     bigint      NOT NULL, -- minor units
    currency   text        NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE simulated_gateway.payments (
    id           text        PRIMARY KEY,
    order_id     text        NOT NULL, -- '' or unknown for money from elsewhere
    amount       bigint      NOT NULL,
    currency     text        NOT NULL,
    status       text        NOT NULL CHECK (status IN ('authorized', 'captured', 'failed')),
    reason       text        NOT NULL DEFAULT '',
    effective_at timestamptz NOT NULL DEFAULT now() -- before it the payment is not there
);
CREATE INDEX payments_of_order ON simulated_gateway.payments (order_id);

CREATE TABLE simulated_gateway.refunds (
    id              text        PRIMARY KEY,
    idempotency_key text        NOT NULL UNIQUE,
    payment_id      text        NOT NULL REFERENCES simulated_gateway.payments,
    aggregate_id    text        NOT NULL, -- goes back to us in notes
    amount          bigint      NOT NULL,
    processed_at    timestamptz NOT NULL  -- before it the refund is pending
);
CREATE INDEX refunds_of_payment ON simulated_gateway.refunds (payment_id);

-- Webhooks to send; a row goes when it was answered for good or given up.
CREATE TABLE simulated_gateway.webhooks (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lane       text        NOT NULL, -- those of one lane go one after the other, by id
    event_id   text        NOT NULL,
    body       bytea       NOT NULL,
    secret     text        NOT NULL CHECK (secret IN ('first', 'last', 'wrong')),
    due_at     timestamptz NOT NULL, -- in the future also while an instance sends it: then the end of its lease
    give_up_at timestamptz NOT NULL,
    attempts   integer     NOT NULL DEFAULT 0
);
CREATE INDEX webhooks_due ON simulated_gateway.webhooks (due_at, id);
