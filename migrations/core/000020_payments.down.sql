DROP SCHEMA simulated_gateway CASCADE;
DROP TABLE timers;
