-- The workers of topic payments write this table. An order's payment status is
-- derived from the columns booked, refund_requested, refund_succeeded and
-- last_attempt_failed.
CREATE TABLE payments (
    id                  text        PRIMARY KEY, -- order id; the gateway's payment id for money without an order
    version             bigint      NOT NULL,
    order_id            text        NOT NULL,    -- '' for money without an order
    gateway_order_id    text        NOT NULL,
    booked              boolean     NOT NULL,
    refund_requested    boolean     NOT NULL,
    refund_succeeded    boolean     NOT NULL,
    last_attempt_failed boolean     NOT NULL,
    has_unmatched       boolean     NOT NULL,    -- it has money that pays no order and is neither refunded nor resolved
    refund_failed       boolean     NOT NULL,    -- the last refund of one of its attempts failed
    created_at          timestamptz NOT NULL,
    state               text        NOT NULL     -- the whole payment as JSON
) WITH (fillfactor = 70);
CREATE INDEX payments_by_gateway_order ON payments (gateway_order_id);
CREATE INDEX payments_unmatched        ON payments (created_at DESC, id DESC) WHERE has_unmatched;
CREATE INDEX payments_refund_failed    ON payments (created_at DESC, id DESC) WHERE refund_failed;
