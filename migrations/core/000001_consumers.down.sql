DROP TABLE dead_letter_actions;
DROP TABLE parked;
DROP TABLE checkpoints;
