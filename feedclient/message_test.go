package feedclient_test

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"tomato/feedclient"
)

// TestTypesMatchAsyncAPI: each message that /asyncapi.json describes has its type here,
// with all fields.
func TestTypesMatchAsyncAPI(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../queryside/feed/asyncapi.json")
	if err != nil {
		t.Fatal(err)
	}
	type schema struct {
		Ref        string `json:"$ref"`
		Properties map[string]json.RawMessage
	}
	var doc struct {
		Channels   map[string]struct{ Messages map[string]any }
		Components struct {
			Messages map[string]struct {
				Name    string
				Payload schema
			}
			Schemas map[string]schema
		}
	}
	if err := json.Unmarshal(b, &doc); err != nil {
		t.Fatal(err)
	}
	fields := func(v any) map[string]bool {
		names := map[string]bool{}
		for f := range reflect.TypeOf(v).Elem().Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			names[name] = true
		}
		return names
	}
	ofMessage := fields(&feedclient.Message{})
	typed := 0
	for id := range doc.Channels["realtime"].Messages {
		m := doc.Components.Messages[id]
		if _, is := m.Payload.Properties["op"]; is {
			continue // an operation of the client
		}
		for name := range m.Payload.Properties {
			if !ofMessage[name] {
				t.Errorf("Message has no field for %s of %s", name, m.Name)
			}
		}
		raw, has := m.Payload.Properties["payload"]
		if !has || id == "emitted" {
			continue
		}
		var payload schema
		if err := json.Unmarshal(raw, &payload); err != nil {
			t.Fatal(err)
		}
		if name, is := strings.CutPrefix(payload.Ref, "#/components/schemas/"); is {
			payload = doc.Components.Schemas[name]
		}
		data, err := (&feedclient.Message{Event: m.Name, Payload: []byte("{}")}).Data()
		if err != nil || reflect.TypeOf(data).Kind() != reflect.Pointer {
			t.Errorf("%s has no type: %T, %v", m.Name, data, err)
			continue
		}
		typed++
		known := fields(data)
		for name := range payload.Properties {
			if !known[name] {
				t.Errorf("%T, the payload of %s, has no field for %s", data, m.Name, name)
			}
		}
	}
	if typed < 7 {
		t.Errorf("only %d messages have a type: is the document read right?", typed)
	}
}

func TestData(t *testing.T) {
	t.Parallel()
	for event, c := range map[string]struct{ payload, want string }{
		"order:update":         {`{"orderId":"o1","status":"accepted","version":3}`, "&{o1 accepted  3}"},
		"order:available":      {`{"orderId":"o1","restaurantId":"r1","location":{"type":"Point","coordinates":[1.5,2.5]},"distanceMeters":7,"expiresAt":"2026-01-02T03:04:05Z"}`, "&{o1 r1 {1.5 2.5} 7 2026-01-02 03:04:05 +0000 UTC}"},
		"order:taken":          {`{"orderId":"o1","reason":"assigned"}`, "&{o1 assigned}"},
		"order:rider_assigned": {`{"orderId":"o1","riderId":"k1","riderName":"Una"}`, "&{o1 k1 Una}"},
		"rider:location":       {`{"riderId":"k1","location":{"type":"Point","coordinates":[1.5,2.5]},"recordedAt":"2026-01-02T03:04:05Z"}`, "&{k1 {1.5 2.5} 2026-01-02 03:04:05 +0000 UTC}"},
		"dispatch:exhausted":   {`{"orderId":"o1","waves":3,"later":"more"}`, "&{o1 3}"},
		"order:offer_seen":     {`{"orderId":"o1","riderId":"k1","seenAt":"2026-01-02T03:04:05Z"}`, "&{o1 k1 2026-01-02 03:04:05 +0000 UTC}"},
		"promo:new":            {`[1]`, "[91 49 93]"},
		"feed:ping":            {``, "<nil>"},
	} {
		m := feedclient.Message{Event: event, Payload: []byte(c.payload)}
		data, err := m.Data()
		if got := fmt.Sprint(data); err != nil || got != c.want {
			t.Errorf("%s: %s, %v; want %s", event, got, err, c.want)
		}
	}
	m := feedclient.Message{Event: "order:new", Payload: []byte(`{"orderId":"o1","items":[{"itemId":"dosa","quantity":2}],"deliverTo":{"address":"4 Church Street"}}`)}
	data, err := m.Data()
	if o, is := data.(*feedclient.Order); err != nil || !is || o.OrderID != "o1" || o.Items[0].Quantity != 2 || o.DeliverTo.Address != "4 Church Street" {
		t.Errorf("order:new: %+v, %v", data, err)
	}
	m = feedclient.Message{Event: "order:taken", Payload: []byte(`{"orderId":1}`)}
	if _, err := m.Data(); err == nil || !strings.Contains(err.Error(), "order:taken") {
		t.Error("a payload of another type:", err)
	}
}
