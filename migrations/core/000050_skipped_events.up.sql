-- The events that must never take effect in a read model. All its generations honour them,
-- also those that a rebuild makes later. A row is never deleted: who skipped what, and
-- why, is kept for ever.
CREATE TABLE skipped_events (
    id            bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model         text        NOT NULL,
    topic         text        NOT NULL,
    partition     integer     NOT NULL,
    source_offset bigint      NOT NULL,
    key           text        NOT NULL, -- the aggregate
    version       bigint      NOT NULL, -- of the aggregate after the event; 0 if the record does not tell
    event_type    text        NOT NULL,
    reason        text        NOT NULL,
    who           text        NOT NULL,
    at            timestamptz NOT NULL DEFAULT now(),
    undone_by     text, -- who has undone it; null while it is in force
    undone_at     timestamptz
);
CREATE UNIQUE INDEX skipped_events_in_force ON skipped_events (model, topic, partition, source_offset) WHERE undone_at IS NULL;
CREATE INDEX skipped_events_by_key ON skipped_events (model, key) WHERE undone_at IS NULL;

-- What operators have done to read models.
CREATE TABLE read_model_actions (
    id      bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT now(),
    who     text        NOT NULL,
    action  text        NOT NULL CHECK (action IN ('switch', 'drop', 'rebuild-one', 'skip', 'unskip', 'trim-history')),
    model   text        NOT NULL,
    details jsonb       NOT NULL
);

-- From which aggregate on, by id, a read model keeps the history of events. An operator
-- has removed what was before.
ALTER TABLE read_models ADD COLUMN history_from text COLLATE "C" NOT NULL DEFAULT '';
