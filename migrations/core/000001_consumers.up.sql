-- The checkpoints of all consumers. A checkpoint is authoritative for which records
-- have taken effect. The Kafka group only decides which instance may move it.
CREATE TABLE checkpoints (
    consumer    text        NOT NULL,
    generation  integer     NOT NULL, -- of a read model's tables; 0 for a policy
    topic       text        NOT NULL,
    partition   integer     NOT NULL,
    next_offset bigint      NOT NULL, -- all records before it have taken effect or are in parked
    term        bigint      NOT NULL DEFAULT 0, -- the reader rule's state at next_offset
    seq         bigint      NOT NULL DEFAULT 0,
    event_time  timestamptz,          -- of the last record before next_offset
    epoch       bigint      NOT NULL DEFAULT 0, -- raised whenever a worker takes the checkpoint: the worker that had it before can no longer write
    since       timestamptz,          -- events before it are skipped; null: none
    updated_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, generation, topic, partition)
) WITH (fillfactor = 50);

-- Records that failed, and the later records of their keys, which wait behind them:
-- one row per record and consumer. A row is deleted when its record has taken effect
-- or was discarded.
CREATE TABLE parked (
    id               bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    consumer         text        NOT NULL,
    generation       integer     NOT NULL,
    topic            text        NOT NULL,
    partition        integer     NOT NULL,
    source_offset    bigint      NOT NULL,
    source_time      timestamptz NOT NULL,
    key              bytea       NOT NULL,
    event_id         text        NOT NULL DEFAULT '',
    event_type       text        NOT NULL DEFAULT '',
    state            text        NOT NULL CHECK (state IN ('retry', 'waiting', 'dead', 'discarded')),
    rev              integer     NOT NULL DEFAULT 0, -- raised by every change, for compare-and-set
    attempt          integer     NOT NULL DEFAULT 0, -- failed attempts; 0 if it has not been tried since it was parked or replayed
    due_at           timestamptz,                    -- of state retry
    class            text        NOT NULL DEFAULT '',
    error            text        NOT NULL DEFAULT '',
    first_failed_at  timestamptz,
    last_failed_at   timestamptz,
    copy_topic       text        NOT NULL DEFAULT '', -- where the newest copy of the record is, in case the source has expired
    copy_offset      bigint      NOT NULL DEFAULT -1,
    replays          integer     NOT NULL DEFAULT 0,
    UNIQUE (consumer, generation, topic, partition, source_offset)
);
CREATE INDEX parked_by_key ON parked (consumer, generation, topic, partition, key, source_offset);
CREATE INDEX parked_dead ON parked (consumer, id) WHERE state = 'dead';

-- Which operator replayed or discarded which dead letters.
CREATE TABLE dead_letter_actions (
    id        bigint      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT now(),
    who       text        NOT NULL,
    action    text        NOT NULL CHECK (action IN ('replay', 'discard')),
    consumer  text        NOT NULL,
    selection jsonb       NOT NULL,
    reason    text        NOT NULL DEFAULT '',
    matched   integer     NOT NULL,
    changed   integer     NOT NULL,
    letters   jsonb       NOT NULL -- id and source position of each
);
