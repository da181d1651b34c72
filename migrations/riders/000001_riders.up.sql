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

-- The workers of topic rider-locations write this table.
CREATE TABLE rider_positions (
    rider_id    text                   PRIMARY KEY,
    location    geography(Point, 4326) NOT NULL,
    recorded_at timestamptz            NOT NULL
) WITH (fillfactor = 70);

-- The eligible riders with their positions. Searches walk this table by distance.
-- With an index on all positions instead, a search would have to look up and skip
-- every busy rider: 100,000 of them if all riders of a city are busy.
--
-- The table is the join of the two tables above, and the workers of both topics
-- write it. Nothing is loaded and folded here, so no update can be lost as long as
-- the two workers of one partition write one after the other. For that, both take
-- an advisory lock.
CREATE TABLE free_riders (
    rider_id    text                   PRIMARY KEY,
    name        text                   NOT NULL,
    location    geography(Point, 4326) NOT NULL,
    recorded_at timestamptz            NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX free_riders_by_place ON free_riders USING gist (location);
