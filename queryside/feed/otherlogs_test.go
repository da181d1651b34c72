package feed

import (
	"io"
	"net/http"
	"slices"
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
	s := serve(t, func(f *Feed, c *HubConfig) { f.LogID, c.Ends = id, eventlog.NewEnds(client) })
	ahead := func(change func(*positions)) string {
		p := newPositions(1)
		change(&p)
		return string(newCursors(testKey).positions(&p))
	}
	for name, c := range map[string]struct{ cursor, want string }{
		"its own":             {ahead(func(*positions) {}), ""},
		"beyond the end":      {ahead(func(p *positions) { p.done[0] = 41 }), "unknown_cursor"},
		"of a feed's record":  {ahead(func(p *positions) { p.done[3] = 0 }), "unknown_cursor"},
		"half way beyond it":  {ahead(func(p *positions) { p.partial, p.offset, p.messages = 1, 7, 1 }), "unknown_cursor"},
		"made with other key": {string(newCursors([]byte("another key 1234")).positions(&s.Hub.at)), "unknown_cursor"},
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
	p := newPositions(3)
	p.done[2], p.partial, p.offset, p.messages = 1<<40, 5, 9, 2
	valid := string(c.positions(&p)) + string(c.rooms(customer("u1"), []string{"ops", "order:x", "order:01980000-0000-7000-8000-000000000001"}))
	f.Add(valid)
	f.Add(string(c.positions(&p)))
	f.Add("AQH_____fw")
	f.Add("AQEAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, s string) {
		got := newCursors(testKey).parse(s, customer("u1"))
		if got.fault == resetUnknown {
			return
		}
		if got.fault != "" || got.partitions < 1 || len(got.done) != got.partitions*len(cursorTopics) || got.partial >= len(got.done) {
			t.Fatalf("%+v", got)
		}
		for _, r := range got.rooms {
			if !rooms.Valid(r) {
				t.Fatal(r)
			}
		}
		again := newCursors(testKey).parse(string(c.positions(&got.positions))+string(c.rooms(customer("u1"), got.rooms)), customer("u1"))
		if again.fault != "" || !slices.Equal(again.done, got.done) || !slices.Equal(again.rooms, got.rooms) {
			t.Fatalf("%+v came back as %+v", got, again)
		}
	})
}
