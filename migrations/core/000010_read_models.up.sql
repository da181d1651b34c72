-- The generations of each read model. The tables of a generation are in the schema
-- <model>_g<generation>.
CREATE TABLE generations (
    model      text        NOT NULL,
    generation integer     NOT NULL CHECK (generation > 0),
    state      text        NOT NULL CHECK (state IN ('filling', 'live')), -- filling: a rebuild writes it; live: every process that projects keeps it up to date
    targets    jsonb       NOT NULL DEFAULT '{}', -- of a rebuild: the end offset of each partition when it began, as {"orders/0": 17}
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model, generation)
);

-- Which generation answers queries. A switch is the change of one row.
CREATE TABLE read_models (
    model   text    PRIMARY KEY,
    serving integer NOT NULL,
    last    integer NOT NULL, -- the highest number that was ever given; no number is used twice
    FOREIGN KEY (model, serving) REFERENCES generations (model, generation)
);
