-- The states of the generations, and the folds that made them. Package projections
-- describes the states.
ALTER TABLE generations
    DROP CONSTRAINT generations_state_check,
    ADD COLUMN fold    text   NOT NULL DEFAULT '', -- the version of the fold that makes the rows; '' if the build that made the generation did not say it
    ADD COLUMN indexes text[];                     -- of a rebuild: the statements that create the indexes which are missing; null before they are dropped
COMMENT ON COLUMN generations.targets IS 'Of a rebuild: the offset of each partition up to which the rows are filled at first, as {"orders/0": 17}.';
UPDATE generations g SET state = CASE WHEN EXISTS (SELECT FROM read_models r WHERE r.model = g.model AND r.serving = g.generation) THEN 'serving' ELSE 'gone' END;
ALTER TABLE generations ADD CONSTRAINT generations_state_check
    CHECK (state IN ('filling', 'catching_up', 'verified', 'serving', 'standby', 'gone'));
CREATE UNIQUE INDEX generations_standby ON generations (model) WHERE state = 'standby';

-- The checkpoints and the parked events of a generation go with it. A consumer that has
-- not noticed cannot write them again. Those of a policy have no generation.
DELETE FROM checkpoints c WHERE generation > 0 AND NOT EXISTS (SELECT FROM generations g WHERE g.model = c.consumer AND g.generation = c.generation);
DELETE FROM parked p WHERE generation > 0 AND NOT EXISTS (SELECT FROM generations g WHERE g.model = p.consumer AND g.generation = p.generation);
ALTER TABLE checkpoints
    ADD COLUMN model text GENERATED ALWAYS AS (CASE WHEN generation > 0 THEN consumer END) STORED,
    ADD FOREIGN KEY (model, generation) REFERENCES generations (model, generation) ON DELETE CASCADE;
ALTER TABLE parked
    ADD COLUMN model text GENERATED ALWAYS AS (CASE WHEN generation > 0 THEN consumer END) STORED,
    ADD FOREIGN KEY (model, generation) REFERENCES generations (model, generation) ON DELETE CASCADE;
CREATE INDEX parked_of_generation ON parked (model, generation) WHERE model IS NOT NULL;
