DROP INDEX parked_of_generation;
ALTER TABLE parked DROP COLUMN model;
ALTER TABLE checkpoints DROP COLUMN model;
DROP INDEX generations_standby;
ALTER TABLE generations DROP CONSTRAINT generations_state_check, DROP COLUMN fold, DROP COLUMN indexes;
UPDATE generations SET state = CASE WHEN state IN ('verified', 'serving', 'standby') THEN 'live' ELSE 'filling' END;
ALTER TABLE generations ADD CONSTRAINT generations_state_check CHECK (state IN ('filling', 'live'));
