-- Written by the lanes of topic riders.
CREATE TABLE riders (
    id       text    PRIMARY KEY,
    version  bigint  NOT NULL,
    name     text    NOT NULL,
    eligible boolean NOT NULL, -- verified, online, without an order: may be offered one
    order_id text    NOT NULL, -- of the rider's claim; '' without one
    claim_id bigint  NOT NULL, -- 0 without one
    state    text    NOT NULL  -- the whole rider as JSON
) WITH (fillfactor = 70);
CREATE INDEX riders_with_order ON riders (order_id) WHERE order_id <> '';

-- Written by the lanes of topic rider-locations. An index over free riders only
-- would need both tables in one, with two writers; instead a search walks this
-- one by distance, looks each rider up, and stops when it has enough.
CREATE TABLE rider_positions (
    rider_id    text                   PRIMARY KEY,
    location    geography(Point, 4326) NOT NULL,
    recorded_at timestamptz            NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX rider_positions_by_place ON rider_positions USING gist (location);
