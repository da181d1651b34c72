DROP TABLE read_models;
DROP TABLE generations;
