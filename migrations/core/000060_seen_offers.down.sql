DROP TABLE seen_offers;
