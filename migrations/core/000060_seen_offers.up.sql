-- Which riders have looked at which offers, as their devices say. Nothing is decided on it.
-- A row is kept for a week (commandside/seen.go).
CREATE TABLE seen_offers (
    order_id text        NOT NULL,
    round    integer     NOT NULL,
    wave     integer     NOT NULL, -- the last one in which the rider was offered the order
    rider_id text        NOT NULL,
    seen_at  timestamptz NOT NULL,
    PRIMARY KEY (order_id, round, wave, rider_id)
);
CREATE INDEX seen_offers_by_age ON seen_offers (seen_at);
