package feed

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tomato/domain"
	"tomato/domain/order"
)

// refused opens a feed that is refused with this status and code, and returns Retry-After.
func (s *server) refused(t *testing.T, a domain.Actor, path string, status int, code string) string {
	t.Helper()
	res, body := s.get(t, path, token(t, a, time.Hour))
	if res.StatusCode != status || !strings.Contains(body, `"`+code+`"`) || res.Header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("%s: %d %s", path, res.StatusCode, body)
	}
	return res.Header.Get("Retry-After")
}

// A user has so many connections at an instance. Others, and the same sub in another role,
// have their own, and a connection that has ended makes place.
func TestConnectionsOfAUserAreBounded(t *testing.T) {
	t.Parallel()
	s := serve(t, func(_ *Feed, c *HubConfig) { c.MaxPerUser = 2 })
	first := s.dial(t, customer("u1"), "")
	s.dial(t, customer("u1"), "")
	if after := s.refused(t, customer("u1"), "/v1/feed/sse", http.StatusTooManyRequests, "too_many_connections"); after != "10" {
		t.Error("Retry-After is", after)
	}
	s.refused(t, customer("u1"), "/v1/feed", http.StatusTooManyRequests, "too_many_connections")
	s.dial(t, customer("u2"), "")
	s.dial(t, domain.Actor{Sub: "u1", Role: domain.Rider}, "")
	_ = first.CloseNow()
	waitFor(t, func() bool { return s.Hub.refuses(customer("u1")) == nil })
	s.dial(t, customer("u1"), "")
}

func TestConnectionsOfAnInstanceAreBounded(t *testing.T) {
	t.Parallel()
	s := serve(t, func(_ *Feed, c *HubConfig) { c.MaxConnections = 1 })
	s.dial(t, customer("u1"), "")
	if after := s.refused(t, customer("u2"), "/v1/feed/sse", http.StatusServiceUnavailable, "unavailable"); after == "" {
		t.Error("there is no Retry-After")
	}
}

// The rooms of a connection are bounded, and those that it names are looked up together.
func TestManyRoomsAreOneQuery(t *testing.T) {
	t.Parallel()
	s := serve(t, func(_ *Feed, c *HubConfig) { c.MaxRooms = 30 })
	query := ""
	for i := range 30 {
		id := fmt.Sprint("o", i)
		s.model.orders[id] = order.State{ID: id, Version: 3, CustomerID: "u1", RiderID: "k1"}
		query += "&room=order:" + id
	}
	for _, a := range []domain.Actor{customer("u1"), k1} {
		before := s.model.times()
		c := s.dial(t, a, "?"+query[1:])
		if n := s.model.times() - before; n != 1 {
			t.Errorf("%s: the read model was asked %d times", a.Role, n)
		}
		cursor := c.header.Get("Feed-Cursor")
		before = s.model.times()
		s.dial(t, a, "?cursor="+cursor)
		if n := s.model.times() - before; n > 1 {
			t.Errorf("%s came back: the read model was asked %d times", a.Role, n)
		}
	}
	s.refused(t, customer("u1"), "/v1/feed/sse?"+query[1:]+"&room=order:o30", http.StatusUnprocessableEntity, "validation_failed")
	s.model.mu.Lock()
	s.model.orders["o7"] = order.State{ID: "o7", Version: 3, CustomerID: "u2"}
	s.model.mu.Unlock()
	s.refused(t, customer("u1"), "/v1/feed/sse?"+query[1:], http.StatusNotFound, "order_not_found")
}

func (m *readModel) times() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.asked
}

// While a position is being reported, the connection answers, and of the positions that
// come meanwhile the newest is reported then, also if the connection has ended.
func TestASlowBrokerHoldsUpNoOperation(t *testing.T) {
	t.Parallel()
	s := serve(t, nil)
	blocked := make(chan struct{})
	s.model.blocked = blocked
	k := s.dial(t, k1, "")
	for i := range 5 {
		k.send(fmt.Sprintf(`{"op":"location","location":{"type":"Point","coordinates":[%d,1]}}`, i))
		if i == 0 {
			<-s.model.reported // it is under way
		}
	}
	k.send(`{"op":"leave","room":"ops"}`)
	k.want("feed:left ops")
	_ = k.CloseNow()
	close(blocked)
	for range 3 { // the first is taken, the last is under way and taken
		<-s.model.reported
	}
	s.model.mu.Lock()
	defer s.model.mu.Unlock()
	if d := cmp.Diff([]domain.Point{{Lng: 0, Lat: 1}, {Lng: 4, Lat: 1}}, s.model.locations); d != "" {
		t.Error(d)
	}
}

// get makes a GET request, and returns the answer and its body.
func (s *server) get(t *testing.T, path, token string) (*http.Response, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // of a stream that should have been refused
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

// waitFor waits until the condition holds.
func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the condition did not come true")
		}
	}
}
