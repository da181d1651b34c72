ALTER TABLE read_models DROP COLUMN history_from;
DROP TABLE read_model_actions;
DROP TABLE skipped_events;
