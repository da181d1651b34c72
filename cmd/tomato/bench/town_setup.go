package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"tomato/domain"
)

func townRestaurant(n int) string { return fmt.Sprint("bench-restaurant-", n%townRestaurants) }

func townRider(n, i int) string { return fmt.Sprintf("bench-rider-%d-%d", n, i) }

// townPlace returns the position of restaurant n. Restaurants are at least 20 km apart.
func townPlace(n int) domain.Point {
	return domain.Point{Lng: 70 + 0.25*float64(n%20), Lat: 10 + 0.25*float64(n/20)}
}

// riderPlace returns the position of a rider. It is within 4.5 km of the restaurant,
// because 0.04 degrees of latitude are 4.4 km.
func riderPlace(n, i int) domain.Point {
	p := townPlace(n)
	p.Lat += 0.004 * float64(i+1)
	return p
}

// registerRiders registers the riders of so many restaurants over HTTP, sends their
// positions, and returns when a search finds all of them.
func registerRiders(ctx context.Context, url string, restaurants int) error {
	ops, err := tokens{}.of(benchOps)
	if err != nil {
		return err
	}
	err = overHTTP(ctx, url, restaurants*townRidersEach, func(conn *httpConn, n int) error {
		id := townRider(n/townRidersEach, n%townRidersEach)
		token, err := tokens{}.of(domain.Actor{Sub: id, Role: domain.Rider})
		if err != nil {
			return err
		}
		if err := conn.do("PUT", "/v1/riders/"+id, token, []byte(`{"name":"Asha"}`)); err != nil {
			return err
		}
		if err := conn.do("POST", "/v1/riders/"+id+"/verify", ops, nil); err != nil {
			return err
		}
		return conn.do("POST", "/v1/riders/"+id+"/online", token, nil)
	})
	if err != nil {
		return err
	}
	type position struct {
		RiderID  string       `json:"riderId"`
		Location domain.Point `json:"location"`
	}
	var positions struct {
		Positions []position `json:"positions"`
	}
	for n := range restaurants {
		for i := range townRidersEach {
			positions.Positions = append(positions.Positions, position{townRider(n, i), riderPlace(n, i)})
		}
	}
	if err := report(url, positions); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = overHTTP(ctx, url, restaurants, func(conn *httpConn, n int) error {
		at := townPlace(n)
		path := fmt.Sprintf("/v1/riders/nearby?lng=%v&lat=%v&radius=5000&limit=50", at.Lng, at.Lat)
		return until(ctx, func() (bool, error) {
			if err := conn.do(http.MethodGet, path, ops, nil); err != nil {
				return false, err
			}
			var found struct{ Items []struct{} }
			err := json.Unmarshal(conn.body.Bytes(), &found)
			return len(found.Items) == townRidersEach, err
		})
	})
	if err != nil {
		return fmt.Errorf("the riders are not found: %w", err)
	}
	return nil
}

// setupConns is how many calls set up a town at the same time.
const setupConns = 64

// overHTTP calls do for each number from 0 to count-1. Up to setupConns calls run at
// the same time, each with a connection that no other call uses meanwhile.
func overHTTP(ctx context.Context, url string, count int, do func(conn *httpConn, n int) error) error {
	g, ctx := errgroup.WithContext(ctx)
	var next atomic.Int64
	for range min(setupConns, count) {
		g.Go(func() error {
			conn := newHTTPConn(url)
			defer conn.close()
			for n := int(next.Add(1)) - 1; n < count; n = int(next.Add(1)) - 1 {
				if err := ctx.Err(); err != nil {
					return err
				}
				if err := do(conn, n); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// report sends positions in bulk.
func report(url string, positions any) error {
	token, err := tokens{}.of(benchOps)
	if err != nil {
		return err
	}
	body, err := json.Marshal(positions)
	if err != nil {
		return err
	}
	conn := newHTTPConn(url)
	defer conn.close()
	return conn.do("POST", "/v1/rider-locations", token, body)
}
