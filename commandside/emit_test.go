package commandside

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/httpapi"
)

func emitAPI(t *testing.T, producer *kgo.Client) *httpapi.API {
	t.Helper()
	s := &Side{Config: Config{InternalKeys: []string{"the key", "the old key", ""}, CommandDeadline: 5 * time.Second}, Producer: producer, Partitions: 3, Log: slog.New(slog.DiscardHandler)}
	api := httpapi.New(httpapi.Options{Log: s.Log})
	s.emitRoutes(api)
	return api
}

func TestEmitAnswersFaultsInOrder(t *testing.T) {
	t.Parallel()
	api := emitAPI(t, nil)
	for name, c := range map[string]struct {
		key, body string
		status    int
		says      string
	}{
		"no key":             {"", `{`, 401, "unauthorized"},
		"wrong key":          {"a key", `{}`, 401, "unauthorized"},
		"the old key":        {"the old key", `{}`, 422, "body.payload"},
		"malformed":          {"the key", `{`, 400, "malformed_json"},
		"nothing":            {"the key", `{}`, 422, "body.payload"},
		"the feed's own":     {"the key", `{"event":"feed:reset","room":"ops","payload":1}`, 422, "body.event"},
		"no name":            {"the key", `{"event":"a b","room":"ops","payload":1}`, 422, "body.event"},
		"no room":            {"the key", `{"event":"x","room":"nowhere","payload":1}`, 422, "body.room"},
		"null payload":       {"the key", `{"event":"x","room":"ops","payload":null}`, 422, "body.payload"},
		"an unknown field":   {"the key", `{"event":"x","room":"ops","payload":1,"to":"all"}`, 422, "body.to"},
		"a role of no user":  {"the key", `{"event":"x","room":"user:u1","payload":1,"role":"ops"}`, 422, "body.role"},
		"a role, no user":    {"the key", `{"event":"x","room":"order:o1","payload":1,"role":"rider"}`, 422, "body.role"},
		"too large":          {"the key", `{"event":"x","room":"ops","payload":"` + strings.Repeat("x", 64<<10-1) + `"}`, 413, "body_too_large"},
		"two faults at once": {"the key", `{"event":"feed:x","room":"nowhere","payload":1}`, 422, `body.room`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if w := emit(t.Context(), api, c.key, c.body); w.Code != c.status || !strings.Contains(w.Body.String(), c.says) {
				t.Errorf("%d %s, want %d with %s", w.Code, w.Body, c.status, c.says)
			}
		})
	}
}

func TestEmitIsOnTopicFeedWhenItAnswers(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 3})
	api := emitAPI(t, eventlogtest.Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner())))
	for _, payload := range []string{`{"a":[1,
 2]}`, `"text"`, `0`, `false`, `[` + strings.Repeat(" ", 64<<10) + `]`} {
		if w := emit(t.Context(), api, "the key", `{"event":"promo:new","room":"user:u1","payload":`+payload+`}`); w.Code != 202 || w.Body.Len() != 0 {
			t.Fatalf("%s: %d %s", payload, w.Code, w.Body)
		}
	}
	if w := emit(t.Context(), api, "the key", `{"event":"promo:new","room":"user:u1","payload":6,"role":"rider"}`); w.Code != 202 {
		t.Fatalf("with a role: %d %s", w.Code, w.Body)
	}
	partition := eventlog.PartitionFor("user:u1", 3)
	var got []string
	err := eventlog.Read(t.Context(), cfg, map[eventlog.TopicPartition]eventlog.Range{{Topic: eventlog.Feed, Partition: partition}: {From: 0, To: 6}}, func(e *eventlog.Event) error {
		var said rooms.Emit
		if err := json.Unmarshal(e.Data, &said); err != nil || e.Type != rooms.Emitted || e.Subject != "user:u1" || said.Room != "user:u1" || said.Event != "promo:new" {
			t.Errorf("%+v %v", e, err)
		}
		got = append(got, string(said.Payload)+string(said.Role))
		return nil
	})
	if want := `{"a":[1,2]} "text" 0 false [] 6rider`; err != nil || strings.Join(got, " ") != want {
		t.Error(got, err)
	}
}

func emit(ctx context.Context, h http.Handler, key, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/api/v1/internal/emit", strings.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	if key != "" {
		r.Header.Set("x-internal-key", key)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}
