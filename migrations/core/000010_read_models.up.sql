-- The generations of each read model that there are. The tables of one live in
-- the schema <model>_g<generation>.
CREATE TABLE generations (
    model      text        NOT NULL,
    generation integer     NOT NULL CHECK (generation > 0),
    state      text        NOT NULL CHECK (state IN ('filling', 'live')), -- filling: a rebuild writes it; live: followed by every process that projects
    targets    jsonb       NOT NULL DEFAULT '{}', -- of a rebuild: {"orders/0": end offset when it began}
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model, generation)
);

-- Which generation answers queries. A switch is the change of one row.
CREATE TABLE read_models (
    model   text    PRIMARY KEY,
    serving integer NOT NULL,
    last    integer NOT NULL, -- the highest number ever given: none is used twice
    FOREIGN KEY (model, serving) REFERENCES generations (model, generation)
);
