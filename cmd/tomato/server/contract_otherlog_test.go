package server_test

import (
	"os"
	"path/filepath"
	"testing"

	"tomato/cmd/tomato/server"
	"tomato/eventlog"
)

// TestCursorsAndTokensOfDeletedDataAreUnknown deletes the data directory and starts the
// server again with the same secrets. Clients still have cursors and tokens with
// positions in logs that no longer exist.
func TestCursorsAndTokensOfDeletedDataAreUnknown(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	private := func(cmd *server.Config) { cmd.DataDir, cmd.Brokers, cmd.DatabaseURL = dir, nil, "" }
	c := startContract(t, private)
	s := c.newScene(t)
	feed := c.listen(t, s.customer, "", nil)
	token := s.place(t).Token()
	cursor := feed.until(`"status":"placed"`)["cursor"].(string)
	menu := c.command(t, s.restaurant, "PUT", "/v1/restaurants/"+s.rest+"/menu/idli", `{"name":"Idli","price":{"amount":100,"currency":"INR"},"available":true}`).Token()
	c.do(t, s.customer, "GET", "/v1/orders/"+s.order, nil, "Consistency-Token", token).want(t, 200)
	basket := func(s *scene) map[string]any {
		return map[string]any{"restaurantId": s.rest, "items": []any{map[string]any{"itemId": "dosa", "quantity": 1}},
			"deliverTo": map[string]any{"location": pointAt(s.lng, s.lat), "address": "1 Street"}}
	}
	c.do(t, s.customer, "POST", "/v1/orders", basket(s), "Consistency-Token", menu).want(t, 201)
	was := c.logID
	c.Stop()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}

	c = startContract(t, private)
	if c.logID == was {
		t.Fatal("logs that were made anew have the same id")
	}
	// Every log gets longer than it was before. So the server cannot recognize the old
	// cursors and tokens by offsets beyond the end of a log.
	s = c.newScene(t)
	for range 15 {
		s.place(t)
	}
	beyond := func(topic string) string {
		return c.logID.Format(eventlog.Token{{Topic: topic, Partition: 1}: 1 << 40}.String())
	}
	for name, tokens := range map[string][2]string{"of the deleted logs": {token, menu}, "beyond the ends": {beyond(eventlog.Orders), beyond(eventlog.Restaurants)}} {
		for _, x := range []*reply{
			c.do(t, s.customer, "GET", "/v1/orders/"+s.order, nil, "Consistency-Token", tokens[0]),
			c.do(t, s.customer, "GET", "/v1/orders", nil, "Consistency-Token", tokens[0]),
			c.do(t, s.customer, "GET", "/v1/orders/"+s.order+"/events", nil, "Consistency-Token", tokens[0]),
			c.do(t, s.customer, "GET", "/v1/restaurants/"+s.rest, nil, "Consistency-Token", tokens[1]),
			c.do(t, s.customer, "POST", "/v1/orders", basket(s), "Consistency-Token", tokens[1]),
			c.do(t, s.customer, "GET", "/v1/feed/sse", nil, "Consistency-Token", tokens[0]),
		} {
			if x.want(t, 422, "unknown_consistency_token"); x.Status != 422 {
				t.Error("that was a token", name)
			}
		}
	}
	c.do(t, s.customer, "POST", "/v1/orders", basket(s), "Consistency-Token", "x").want(t, 422, "validation_failed")
	l := c.listen(t, s.customer, "?cursor="+cursor, nil)
	if reset := l.until("feed:reset"); reset["reason"] != "unknown_cursor" || l.all()[0]["event"] != "feed:reset" {
		t.Errorf("a cursor of the deleted logs: %v", l.all())
	}
}
