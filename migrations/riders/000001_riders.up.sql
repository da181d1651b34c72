-- The workers of topic riders write this table.
CREATE TABLE riders (
    id       text    PRIMARY KEY,
    version  bigint  NOT NULL,
    name     text    NOT NULL,
    eligible boolean NOT NULL, -- verified, online, without an order: may be offered one
    order_id text    NOT NULL, -- of the rider's claim; '' without one
    claim_id bigint  NOT NULL, -- 0 without one
    state    text    NOT NULL  -- the whole rider as JSON
) WITH (fillfactor = 70);

-- What a search needs of a rider, in one row, so that one partial index has the free
-- riders and nobody else. With an index on all positions instead, a search would have
-- to look up and skip every busy rider: 100,000 of them if all riders of a city are
-- busy.
--
-- The row has two halves. Each half is written by the workers of one topic, which
-- write their own columns and read none of the other's. So neither can undo what the
-- other has written, and the lock of the row is the only lock.
CREATE TABLE rider_positions (
    rider_id    text                   PRIMARY KEY,
    -- Topic rider-locations. Both are null if there is no position.
    location    geography(Point, 4326),
    recorded_at timestamptz,
    stale       boolean                NOT NULL DEFAULT false, -- too old for every search (projections/riders_upkeep.go); the next position makes it false
    -- Topic riders. These are copies of the columns in riders.
    name        text, -- null before the rider is known
    eligible    boolean                NOT NULL DEFAULT false
) WITH (
    fillfactor = 70
);
CREATE INDEX rider_positions_free ON rider_positions USING gist (location)
    WHERE eligible AND NOT stale AND location IS NOT NULL;

-- The riders whom a search may find. The condition is that of the index above.
CREATE VIEW free_riders AS
    SELECT rider_id, name, location, recorded_at FROM rider_positions
    WHERE eligible AND NOT stale AND location IS NOT NULL;
