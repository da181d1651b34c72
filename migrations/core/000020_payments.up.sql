-- What payment policies have to do later: one row per policy and key. A row is
-- written before the checkpoint passes the event that asked for it, and is deleted
-- when the work is done. To do the work twice is harmless.
CREATE TABLE timers (
    policy   text        NOT NULL,
    key      text        NOT NULL,
    due_at   timestamptz NOT NULL, -- while a worker has the row: the end of its lease
    data     jsonb       NOT NULL,
    attempts integer     NOT NULL DEFAULT 0, -- failed in a row
    PRIMARY KEY (policy, key)
);
CREATE INDEX timers_due ON timers (due_at);

-- The simulated payment gateway. It stands for a system of another company, so
-- only the gateway's own code reads or writes these tables.
CREATE SCHEMA simulated_gateway;

CREATE TABLE simulated_gateway.orders (
    id         text        PRIMARY KEY,
    receipt    text        NOT NULL, -- the id that Tomato gave: the order's
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
    effective_at timestamptz NOT NULL DEFAULT now() -- before this time the payment does not exist
);
CREATE INDEX payments_of_order ON simulated_gateway.payments (order_id);

CREATE TABLE simulated_gateway.refunds (
    id              text        PRIMARY KEY,
    idempotency_key text        NOT NULL UNIQUE,
    payment_id      text        NOT NULL REFERENCES simulated_gateway.payments,
    aggregate_id    text        NOT NULL, -- returned to Tomato in notes
    amount          bigint      NOT NULL,
    processed_at    timestamptz NOT NULL  -- before this time the refund is pending
);
CREATE INDEX refunds_of_payment ON simulated_gateway.refunds (payment_id);

-- Webhooks to send. A row is deleted when the receiver has answered with success, or
-- when the gateway has given up.
CREATE TABLE simulated_gateway.webhooks (
    id         bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    lane       text        NOT NULL, -- webhooks of one lane are sent one after the other, by id
    event_id   text        NOT NULL,
    body       bytea       NOT NULL,
    secret     text        NOT NULL CHECK (secret IN ('first', 'last', 'wrong')),
    due_at     timestamptz NOT NULL, -- while an instance sends the webhook: the end of its lease
    give_up_at timestamptz NOT NULL,
    attempts   integer     NOT NULL DEFAULT 0
);
CREATE INDEX webhooks_due ON simulated_gateway.webhooks (due_at, id);
