package server_test

import (
	"fmt"
	"io"
	"net/http"
	"testing"
	"time"

	"tomato/cmd/tomato/server"
	"tomato/cmd/tomato/servertest"
	"tomato/domain"
	"tomato/eventlog/eventlogtest"
)

// A load balancer sends requests until it has asked /readyz again. A client that keeps
// asking over new connections is refused nothing before TOMATO_SHUTDOWN_DELAY has passed,
// whatever the role, although /readyz is 503; and a feed that is open stays open for as
// long. The test compares with the time before the stop began, so a slow machine makes no
// difference.
func TestNothingIsRefusedDuringTheShutdownDelay(t *testing.T) {
	t.Parallel()
	const delay = 3 * time.Second
	kafka := eventlogtest.Embedded(t)
	for role, x := range map[string]struct {
		who  domain.Actor
		call string
		body any
	}{
		server.RoleCommand: {servertest.Ops, "PUT /v1/restaurants/rest1", map[string]any{"name": "Udupi Hut", "location": domain.Point{Lng: 77.5946, Lat: 12.9716}}},
		server.RoleQuery:   {servertest.Ops, "GET /v1/restaurants/nearby?lat=12.9716&lng=77.5946&radius=1000", nil},
		server.RoleFeed:    {servertest.Customer("cust1"), "HEAD /asyncapi.json", nil},
		server.RoleProject: {domain.Actor{}, "GET /healthz", nil},
		server.RoleReact:   {domain.Actor{}, "GET /healthz", nil},
	} {
		t.Run(role, func(t *testing.T) {
			t.Parallel()
			a := servertest.New(t, kafka, "--role", role, "--shutdown-delay", fmt.Sprint(delay)).Start()
			a.Client.Transport.(*http.Transport).DisableKeepAlives = true
			a.Must(x.who, x.call, x.body)
			feedEnded := make(chan time.Time, 1)
			if role == server.RoleFeed {
				feed := openStream(t, a, x.who)
				go func() {
					_, _ = io.Copy(io.Discard, feed)
					feedEnded <- time.Now()
				}()
			}

			stopping, began, stopped := a.Server, time.Now(), make(chan error, 1)
			a.Server = nil
			go func() { stopped <- stopping.Close() }()
			red, asked := false, 0
			for {
				got := a.Do(x.who, x.call, x.body)
				if got.Err != nil || got.Status >= 300 {
					if after := time.Since(began); after < delay {
						t.Errorf("after %v and %d requests: %v", after, asked, got.Fault())
					}
					break
				}
				asked++
				if !red {
					red = a.Do(domain.Actor{}, "GET /readyz", nil).Status == http.StatusServiceUnavailable
				}
				if red && role == server.RoleFeed && time.Since(began) < delay/2 { // feeds are still opened
					_ = openStream(t, a, x.who).Close()
				}
			}
			if !red {
				t.Error("/readyz was never 503 while requests were taken")
			}
			if err := <-stopped; err != nil {
				t.Error(err)
			}
			if role == server.RoleFeed {
				if after := (<-feedEnded).Sub(began); after < delay {
					t.Errorf("the open feed was ended after %v", after)
				}
			}
		})
	}
}

// openStream opens a feed as Server-Sent Events.
func openStream(t *testing.T, a *servertest.Installation, who domain.Actor) io.ReadCloser {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), "GET", a.URL+"/v1/feed/sse", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+servertest.Token(t, who))
	resp, err := a.Client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatal("a feed is answered with", resp.Status)
	}
	return resp.Body
}
