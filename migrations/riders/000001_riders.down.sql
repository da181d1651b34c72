DROP VIEW free_riders;
DROP TABLE rider_positions;
DROP TABLE riders;
