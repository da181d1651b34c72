-- The workers of topic orders write both tables.
--
-- Most events change only version, status and state. No index and no predicate of
-- an index mentions these columns, so such an update stays on its page and touches
-- no index (HOT). The fillfactor keeps free space on each page for this. For the
-- same reason there is no index on status. Queries use the column closed instead,
-- which changes once. Lists begin with it, so that a list of open orders, or of one
-- final status, reads no others.
--
-- One table has all orders, however many there are. With a partition per month, a list
-- would look into each of them: with 120 partitions and 1,000,000 orders it took 15 to
-- 20 times as long.
CREATE TABLE orders (
    id            text                   PRIMARY KEY,
    version       bigint                 NOT NULL,
    status        text                   NOT NULL,
    closed        text                   NOT NULL, -- the final status; '' before
    customer_id   text                   NOT NULL,
    restaurant_id text                   NOT NULL,
    rider_id      text                   NOT NULL, -- '' without one
    exhausted     boolean                NOT NULL, -- ready, and dispatch has given up
    pick_up       geography(Point, 4326) NOT NULL,
    round         integer                NOT NULL,
    wave          integer                NOT NULL,
    waiting       boolean                NOT NULL, -- ready, and dispatch has not given up
    wave_open     boolean                NOT NULL,
    asked         text[]                 NOT NULL, -- while a wave is open: the riders who are in it, or who declined or dropped the order in this round
    created_at    timestamptz            NOT NULL,
    state         text                   NOT NULL  -- the whole order as JSON
) WITH (fillfactor = 60);
CREATE INDEX orders_by_customer   ON orders (customer_id, closed, created_at DESC, id DESC);
CREATE INDEX orders_by_restaurant ON orders (restaurant_id, closed, created_at DESC, id DESC);
CREATE INDEX orders_by_rider      ON orders (rider_id, closed, created_at DESC, id DESC) WHERE rider_id <> '';
CREATE INDEX orders_by_closed     ON orders (closed, created_at DESC, id DESC);
CREATE INDEX orders_exhausted     ON orders (created_at DESC, id DESC) WHERE exhausted;
CREATE INDEX orders_waiting       ON orders USING gist (pick_up) WHERE waiting;
-- The pending list is kept short, because every search reads it.
CREATE INDEX orders_asked         ON orders USING gin (asked) WITH (gin_pending_list_limit = 64) WHERE wave_open;

-- The events of the orders, as they came. The column data is text and not jsonb,
-- because Postgres would have to parse jsonb, and nobody searches inside it.
CREATE TABLE order_events (
    order_id     text        COLLATE "C" NOT NULL, -- so that the ids of a month are one range of the index
    version      bigint      NOT NULL,
    type         text        NOT NULL,
    data_version integer     NOT NULL, -- the version of the type's data, 1 and up
    at           timestamptz NOT NULL,
    actor        text        NOT NULL, -- who made it, <role>:<sub>; '' for a deadline or a policy
    data         text        NOT NULL,
    PRIMARY KEY (order_id, version)
);
