DROP TABLE rider_positions;
DROP TABLE riders;
