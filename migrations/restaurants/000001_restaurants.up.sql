-- The workers of topic restaurants write this table.
CREATE TABLE restaurants (
    id       text                   PRIMARY KEY,
    version  bigint                 NOT NULL,
    open     boolean                NOT NULL,
    location geography(Point, 4326) NOT NULL,
    state    text                   NOT NULL -- the whole restaurant as JSON
);
CREATE INDEX restaurants_by_place ON restaurants USING gist (location);
