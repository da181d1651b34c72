DROP TABLE restaurants;
