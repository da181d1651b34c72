package feed_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys/subjectkeystest"
	"tomato/httpapi"
	"tomato/projections/realtime"
	"tomato/queryside/feed"
)

// asyncAPI is the part of the document that the tests look at.
type asyncAPI struct {
	AsyncAPI string `json:"asyncapi"`
	Channels map[string]struct {
		Address     string         `json:"address"`
		Description string         `json:"description"`
		Messages    map[string]any `json:"messages"`
	} `json:"channels"`
	Components struct {
		Messages map[string]struct {
			Name    string         `json:"name"`
			Payload map[string]any `json:"payload"`
		} `json:"messages"`
		Schemas map[string]map[string]any `json:"schemas"`
	} `json:"components"`
}

func servedAsyncAPI(t *testing.T) (doc asyncAPI) {
	t.Helper()
	api := httpapi.New(httpapi.Options{Title: "test"})
	feed.AsyncAPI(api)
	w := httptest.NewRecorder()
	api.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/asyncapi.json", nil))
	if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "application/json" {
		t.Fatalf("GET /asyncapi.json: %d %s", w.Code, w.Header().Get("Content-Type"))
	}
	if err := json.Unmarshal(w.Body.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	if doc.AsyncAPI != "3.0.0" {
		t.Errorf("asyncapi: %q", doc.AsyncAPI)
	}
	return doc
}

// goldenEvents are the wire files of one aggregate: type → data of each version.
func goldenEvents(t *testing.T, aggregate string) map[string][][]byte {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("..", "..", "domain", aggregate, "testdata", "*.json"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no wire files of %s: %v", aggregate, err)
	}
	events := map[string][][]byte{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		name, _, _ := strings.Cut(filepath.Base(f), ".")
		events[name] = append(events[name], b)
	}
	return events
}

// TestAsyncAPIHasEveryEvent: a topic's channel lists exactly the events of its
// aggregate, and the shapes described are those on the wire.
func TestAsyncAPIHasEveryEvent(t *testing.T) {
	t.Parallel()
	doc := servedAsyncAPI(t)
	decoders := map[string]func(string, []byte) (domain.Event, error){
		"order":      func(n string, b []byte) (domain.Event, error) { return order.Decode(n, 1, b) },
		"payment":    func(n string, b []byte) (domain.Event, error) { return payment.Decode(n, 1, b) },
		"rider":      func(n string, b []byte) (domain.Event, error) { return rider.Decode(n, 1, b) },
		"restaurant": func(n string, b []byte) (domain.Event, error) { return restaurant.Decode(n, 1, b) },
	}
	for aggregate, decode := range decoders {
		topic := aggregate + "s"
		golden := goldenEvents(t, aggregate)
		want := append(slices.Collect(maps.Keys(golden)), eventlog.ShardClaimed)
		slices.Sort(want)
		if got := slices.Sorted(maps.Keys(doc.Channels[topic].Messages)); !slices.Equal(got, want) {
			t.Errorf("channel %s has\n%v, not\n%v", topic, got, want)
		}
		for name, versions := range golden {
			for _, data := range versions {
				if _, err := decode(name, data); err != nil {
					t.Errorf("%s: %v", name, err)
				}
				doc.check(t, name, name, data)
			}
		}
	}
}

func TestAsyncAPIHasEveryTopic(t *testing.T) {
	t.Parallel()
	doc := servedAsyncAPI(t)
	for _, topic := range []string{eventlog.Orders, eventlog.Payments, eventlog.Riders, eventlog.Restaurants, eventlog.RiderLocations,
		eventlog.PaymentWebhooks, eventlog.Feed, eventlog.ShardSnapshots, eventlog.ShardOwners} {
		if doc.Channels[topic].Address != topic {
			t.Errorf("no channel has the address %s", topic)
		}
	}
	if got, want := doc.Channels["parked"].Address, eventlog.ParkedTopic("{topic}", "{consumer}", "{stage}"); got != want {
		t.Errorf("parked records: %s, not %s", got, want)
	}
	if doc.Components.Messages[rooms.Emitted].Name != rooms.Emitted || doc.Components.Messages[rider.PositionType].Name != rider.PositionType {
		t.Errorf("%s or %s is missing", rooms.Emitted, rider.PositionType)
	}
}

// TestAsyncAPIHasEveryFeedMessage makes the messages of every event there is,
// and holds them to the document.
func TestAsyncAPIHasEveryFeedMessage(t *testing.T) {
	t.Parallel()
	doc := servedAsyncAPI(t)
	messages := []rooms.Message{{Event: "rider:location", Rooms: []string{rooms.Order("o1")}, Payload: []byte(
		`{"riderId":"r1","location":{"type":"Point","coordinates":[77.5946,12.9716]},"recordedAt":"2026-01-02T03:04:05Z"}`)}}
	for topic, aggregate := range map[string]string{eventlog.Orders: "order", eventlog.Payments: "payment"} {
		for name, versions := range goldenEvents(t, aggregate) {
			for _, data := range versions {
				made, err := realtime.Rooms(t.Context(), &subjectkeystest.Keys{}, &eventlog.Event{Topic: topic, Type: name, Data: data, Version: 3, Time: time.Unix(1, 0).UTC()})
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				messages = append(messages, made...)
			}
		}
	}
	seen := map[string]bool{}
	for _, m := range messages {
		seen[m.Event] = true
		wire := fmt.Sprintf(`{"event":%q,"room":%q,"payload":%s,"timestamp":"2026-01-02T03:04:05Z","cursor":"abc"}`, m.Event, m.Rooms[0], m.Payload)
		doc.check(t, m.Event, strings.ReplaceAll(m.Event, ":", "_"), []byte(wire))
	}
	for _, name := range []string{"order:new", "order:update", "order:available", "order:taken", "order:rider_assigned", "rider:location", "dispatch:exhausted"} {
		if !seen[name] {
			t.Errorf("no event made a %s", name)
		}
	}
	channel := doc.Channels["realtime"]
	if channel.Address != "/v1/feed" {
		t.Errorf("the feed is at %q", channel.Address)
	}
	for name := range seen {
		if channel.Messages[strings.ReplaceAll(name, ":", "_")] == nil {
			t.Errorf("the feed's channel does not list %s", name)
		}
	}
	for _, name := range []string{"feed_resumed", "feed_reset", "feed_joined", "feed_left", "feed_error", "feed_ping", "emitted", "join", "leave", "location", "seen", "order_offer_seen"} {
		if channel.Messages[name] == nil {
			t.Errorf("the feed's channel does not list %s", name)
		}
	}
}

// TestAsyncAPIHasEveryCloseCode: the description of the feed's channel says of each
// close code in subscriber.go, and of the two of the websocket library, what a client
// should do.
func TestAsyncAPIHasEveryCloseCode(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("subscriber.go")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"1002", "1009"} // of the websocket library
	for _, m := range regexp.MustCompile(`closing\{(\d{4}),`).FindAllStringSubmatch(string(source), -1) {
		want = append(want, m[1])
	}
	slices.Sort(want)
	if len(want) < 8 {
		t.Fatalf("subscriber.go has only the close codes %v", want)
	}
	var got []string
	for _, m := range regexp.MustCompile(`\. (\d{4}): `).FindAllStringSubmatch(servedAsyncAPI(t).Channels["realtime"].Description, -1) {
		got = append(got, m[1])
	}
	if !slices.Equal(got, want) {
		t.Errorf("the feed's channel describes the close codes %v, not %v", got, want)
	}
}

// check holds data to the payload of a message: what is required is there, what
// is there is described, and is what the description says.
func (doc asyncAPI) check(t *testing.T, name, key string, data []byte) {
	t.Helper()
	m, ok := doc.Components.Messages[key]
	if !ok {
		t.Errorf("%s is not described", name)
		return
	}
	if m.Name != name {
		t.Errorf("%s is described as %s", name, m.Name)
	}
	var v any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	for _, fault := range doc.faults(m.Payload, v, "") {
		t.Errorf("%s%s", name, fault)
	}
}

func (doc asyncAPI) faults(schema map[string]any, v any, at string) (faults []string) {
	if ref, ok := schema["$ref"].(string); ok {
		s, ok := doc.Components.Schemas[strings.TrimPrefix(ref, "#/components/schemas/")]
		if !ok {
			return []string{at + ": there is no " + ref}
		}
		return doc.faults(s, v, at)
	}
	bad := func(format string, a ...any) { faults = append(faults, at+": "+fmt.Sprintf(format, a...)) }
	if c, ok := schema["const"]; ok && c != v {
		bad("%v is not %v", v, c)
	}
	if enum, ok := schema["enum"].([]any); ok && !slices.Contains(enum, v) {
		bad("%v is none of %v", v, enum)
	}
	switch schema["type"] {
	case nil:
	case "object":
		o, ok := v.(map[string]any)
		if !ok {
			bad("%v is no object", v)
			return faults
		}
		properties, _ := schema["properties"].(map[string]any)
		for k, x := range o {
			p, ok := properties[k].(map[string]any)
			if !ok {
				bad("%s is not described", k)
				continue
			}
			faults = append(faults, doc.faults(p, x, at+"."+k)...)
		}
		required, _ := schema["required"].([]any)
		for _, k := range required {
			if _, ok := o[k.(string)]; !ok {
				bad("%s is required, and is not there", k)
			}
		}
	case "array":
		list, ok := v.([]any)
		if !ok {
			bad("%v is no array", v)
			return faults
		}
		items, _ := schema["items"].(map[string]any)
		for i, x := range list {
			faults = append(faults, doc.faults(items, x, fmt.Sprintf("%s[%d]", at, i))...)
		}
	case "string":
		s, ok := v.(string)
		if !ok {
			bad("%v is no string", v)
			return faults
		}
		if p, ok := schema["pattern"].(string); ok && !strings.Contains(p, "(?!") && !regexp.MustCompile(p).MatchString(s) {
			bad("%q does not match %s", s, p)
		}
		if schema["format"] == "date-time" {
			if _, err := time.Parse(time.RFC3339Nano, s); err != nil {
				bad("%q is no time", s)
			}
		}
	case "integer", "number":
		n, ok := v.(float64)
		if !ok || schema["type"] == "integer" && n != float64(int64(n)) {
			bad("%v is no %v", v, schema["type"])
		}
	case "boolean":
		if _, ok := v.(bool); !ok {
			bad("%v is no boolean", v)
		}
	default:
		bad("unknown type %v", schema["type"])
	}
	return faults
}
