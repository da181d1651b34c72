-- Whose tokens were revoked, one row for each subject. Instances read the rows with a higher
-- seq than the highest that they have seen. Writers hold a lock on the table, so that seq
-- grows in the order of the commits (operations/revocations.go).
CREATE TABLE revocations (
    sub        text        PRIMARY KEY,
    seq        bigint      NOT NULL UNIQUE,
    revoked_at timestamptz NOT NULL,
    revoked_by text        NOT NULL,
    reason     text        NOT NULL
);
