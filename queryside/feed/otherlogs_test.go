package feed

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// Cursors and tokens of other logs, or beyond the ends of these, are known for
// what they are at once; nobody waits for what was never appended.
func TestWhatIsOfAnotherLogIsNotWaitedFor(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
	client := eventlogtest.Client(t, cfg)
	id, err := eventlog.ReadLogID(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	s := serve(t, func(f *Feed, c *HubConfig) { c.LogID, c.Ends = id, eventlog.NewEnds(client) })
	ahead := func(key []byte, change func(*place)) string {
		p := newPlace(s.Hub.base)
		change(&p)
		return string(newCursors(key).append(nil, &p, customer("u1"), nil))
	}
	for name, c := range map[string]struct{ cursor, want string }{
		"its own":             {ahead(testKey, func(*place) {}), ""},
		"beyond the end":      {ahead(testKey, func(p *place) { p.set(0, 41) }), "unknown_cursor"},
		"of a feed's record":  {ahead(testKey, func(p *place) { p.set(3, 0) }), "unknown_cursor"},
		"half way beyond it":  {ahead(testKey, func(p *place) { p.part, p.sent = change{1, 7}, 1 }), "unknown_cursor"},
		"made with other key": {ahead([]byte("another key 1234"), func(*place) {}), "unknown_cursor"},
	} {
		conn := s.dial(t, customer("u1"), "?cursor="+c.cursor)
		g, err := conn.next()
		if err != nil {
			t.Fatal(err)
		}
		if want := map[bool]string{true: "feed:resumed", false: "feed:reset"}[c.want == ""]; g.Event != want || g.Reason != c.want {
			t.Errorf("%s: %s %s", name, g.Event, g.Reason)
		}
	}
	beyond := eventlog.Token{{Topic: eventlog.Payments}: 5}.String()
	for name, c := range map[string]struct{ token, code string }{
		"malformed":      {"x", "validation_failed"},
		"of other logs":  {eventlog.LogID{}.Format(beyond), "unknown_consistency_token"},
		"beyond the end": {id.Format(beyond), "unknown_consistency_token"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/v1/feed/sse?token="+token(t, customer("u1"), time.Hour), nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Consistency-Token", c.token)
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if resp.StatusCode != 422 || !strings.Contains(string(b), c.code) {
			t.Errorf("%s: %d %s", name, resp.StatusCode, b)
		}
	}
}

// FuzzCursor: whatever a client sends is a cursor of this feed or unknown.
func FuzzCursor(f *testing.F) {
	c := newCursors(testKey)
	b := &base{300, "a key", 0, newPositions(3)}
	p := newPlace(b)
	p.set(2, 1<<40)
	p.part, p.sent = change{5, 9}, 2
	f.Add(string(c.append(nil, &p, customer("u1"), roomsPart([]string{"ops", "order:x", "order:01980000-0000-7000-8000-000000000001"}))))
	f.Add(string(c.append(nil, &p, customer("u1"), nil)))
	f.Add("AQH_____fw")
	f.Add("AgEAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, s string) {
		got := newCursors(testKey).parse(s, customer("u1"))
		if got.fault == resetUnknown {
			return
		}
		if got.fault != "" || got.base < 0 {
			t.Fatalf("%+v", got)
		}
		for _, r := range got.rooms {
			if !rooms.Valid(r) {
				t.Fatal(r)
			}
		}
		back, ok := c.place(got, customer("u1"), b)
		if !ok {
			return
		}
		if again := string(c.append(nil, &back, customer("u1"), roomsPart(got.rooms))); again != s {
			t.Fatalf("%s came back as %s", s, again)
		}
	})
}
