package postgrestest_test

import (
	"testing"

	"tomato/migrations/postgrestest"
)

func TestEachTestHasAnEmptyDatabaseWithPostGIS(t *testing.T) {
	t.Parallel()
	for range 8 {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			db := postgrestest.New(t)
			if _, err := db.Exec(t.Context(), "CREATE TABLE places (at geography(Point))"); err != nil {
				t.Fatal(err)
			}
			if _, err := db.Exec(t.Context(), "INSERT INTO places VALUES (ST_MakePoint(77.59, 12.97))"); err != nil {
				t.Fatal(err)
			}
			var meters float64
			err := db.QueryRow(t.Context(), "SELECT ST_Distance(at, ST_MakePoint(77.60, 12.97)::geography) FROM places").Scan(&meters)
			if err != nil || meters < 1000 || meters > 1100 {
				t.Errorf("%v m, %v", meters, err)
			}
		})
	}
}
