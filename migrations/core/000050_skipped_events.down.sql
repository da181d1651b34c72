DROP TABLE read_model_actions;
DROP TABLE skipped_events;
