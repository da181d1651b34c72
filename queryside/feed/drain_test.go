package feed

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// advisedWaits are what the closed connections were advised, in milliseconds, sorted.
func advisedWaits(t *testing.T, all []*subscriber) (waits []int64) {
	t.Helper()
	for _, s := range all {
		_, end := s.take(nil, 1)
		if end == nil {
			t.Fatal("a connection is open")
		}
		var ms int64
		if _, after, ok := strings.Cut(end.reason, "; retry after "); ok {
			if _, err := fmt.Sscanf(after, "%d ms", &ms); err != nil {
				t.Fatal(end.reason)
			}
		}
		if ms != end.wait.Milliseconds() || len(end.reason) > 123 {
			t.Errorf("%q, with %v", end.reason, end.wait)
		}
		waits = append(waits, ms)
	}
	slices.Sort(waits)
	return waits
}

// Clients that lose their connections together are asked to come back evenly over the
// configured time, after a drain and after a new beginning.
func TestClientsComeBackSpreadOverTheConfiguredTime(t *testing.T) {
	t.Parallel()
	connected := func(h *Hub) (all []*subscriber) {
		for range 5 {
			all = append(all, open(t, h, customer("u1"), nil, ""))
		}
		return all
	}
	want := []int64{0, 2000, 4000, 6000, 8000}
	h := openHub(t, HubConfig{DrainSpread: 10 * time.Second}, 1)
	all := connected(h)
	h.Begin(baseAt(2, none(1)))
	if waits := advisedWaits(t, all); !slices.Equal(waits, want) {
		t.Error("after a new beginning:", waits)
	}
	for _, s := range all {
		h.disconnect(s)
	}
	h.Ready()
	all = connected(h)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_ = h.Drain(ended)
	if waits := advisedWaits(t, all); !slices.Equal(waits, want) {
		t.Error("after a drain:", waits)
	}
}

// The advice is in the reason of the close, and in the field retry of a stream.
func TestTheAdviceIsOnTheWire(t *testing.T) {
	t.Parallel()
	s := serve(t, func(_ *Feed, c *HubConfig) { c.DrainSpread = time.Minute })
	ws := s.dial(t, customer("u1"), "")
	res, err := http.Get(s.URL + "/v1/feed/sse?token=" + token(t, customer("u1"), time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	go func() { _ = s.Hub.Drain(context.Background()) }()
	_, closed := ws.next()
	var waits []string
	for lines := bufio.NewScanner(res.Body); lines.Scan(); {
		if wait, is := strings.CutPrefix(lines.Text(), "retry: "); is {
			waits = append(waits, wait)
		}
	}
	// Of the two connections, one is asked to wait for 30 s and one is not asked to wait.
	inReason, inStream := strings.Contains(closed.Error(), "retry after 30000 ms"), slices.Contains(waits, "30000")
	if websocket.CloseStatus(closed) != 1001 || inReason == inStream || len(waits) == 0 {
		t.Errorf("%v, retry %v", closed, waits)
	}
}
