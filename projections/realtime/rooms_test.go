package realtime

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"tomato/domain"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

const (
	theOrder = "019b7c1e-8e3c-7b1a-9d55-0a1b2c3d4e5f"
	parties  = "user:cust-9 restaurant:res-17 order:" + theOrder
)

var at = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

func update(rooms, more string) string {
	return `order:update [` + rooms + `] {"orderId":"` + theOrder + `",` + more + `}`
}

// The messages of each event of the domain in its golden wire form, as
// "event [rooms] payload".
var table = map[string][]string{
	"ORDER_PLACED": {update(parties, `"status":"placed","version":7`)},
	"ORDER_PAID": {
		`order:new [restaurant:res-17] {"orderId":"` + theOrder + `","version":7,"status":"placed","paymentStatus":"paid","customerId":"cust-9","restaurantId":"res-17",` +
			`"items":[{"itemId":"dosa","name":"Masala Dosa","unitPrice":15000,"quantity":3}],"amount":45000,"currency":"INR",` +
			`"pickUp":{"name":"Udupi Hut","location":{"type":"Point","coordinates":[77.5946,12.9716]},"address":"12 MG Road"},` +
			`"deliverTo":{"location":{"type":"Point","coordinates":[77.6101,12.9352]},"address":"4 Church Street","instructions":"ring twice"},` +
			`"externalReference":"till-3","acceptBy":"2026-01-02T03:14:05Z","createdAt":"2026-01-02T03:03:05Z","updatedAt":"2026-01-02T03:04:05Z"}`,
		update(parties, `"status":"placed","paymentStatus":"paid","version":7`),
	},
	"ORDER_EXPIRED":         {update(parties, `"status":"expired","version":7`)},
	"ORDER_ACCEPTED":        {update(parties, `"status":"accepted","version":7`)},
	"ORDER_REJECTED":        {update(parties, `"status":"rejected","version":7`)},
	"ORDER_PREPARING":       {update(parties, `"status":"preparing","version":7`)},
	"ORDER_READY_FOR_RIDER": {update(parties, `"status":"ready_for_rider","version":7`)},
	"ORDER_OFFERED": {
		`order:available [user:rider-5] {"orderId":"` + theOrder + `","restaurantId":"res-17","location":{"type":"Point","coordinates":[77.5946,12.9716]},"distanceMeters":420,"expiresAt":"2026-01-02T03:04:35Z"}`,
		`order:available [user:rider-6] {"orderId":"` + theOrder + `","restaurantId":"res-17","location":{"type":"Point","coordinates":[77.5946,12.9716]},"distanceMeters":1310,"expiresAt":"2026-01-02T03:04:35Z"}`,
	},
	"OFFER_DECLINED": nil,
	"OFFERS_EXPIRED": {`order:taken [RIDERS] {"orderId":"` + theOrder + `","reason":"expired"}`},
	"RIDER_ASSIGNED": {
		update(parties+" user:rider-5", `"status":"rider_assigned","version":7`),
		`order:taken [user:rider-6] {"orderId":"` + theOrder + `","reason":"assigned"}`,
		`order:rider_assigned [` + parties + `] {"orderId":"` + theOrder + `","riderId":"rider-5","riderName":"Una Rao"}`,
	},
	"RIDER_UNASSIGNED":   {update(parties+" user:rider-5", `"status":"ready_for_rider","version":7`)},
	"DISPATCH_EXHAUSTED": {`dispatch:exhausted [restaurant:res-17 ops] {"orderId":"` + theOrder + `","waves":3}`},
	"DISPATCH_REQUESTED": nil,
	"ORDER_PICKED_UP":    {update(parties+" user:rider-5", `"status":"picked_up","version":7`)},
	"ORDER_DELIVERED":    {update(parties+" user:rider-5", `"status":"delivered","version":7`)},
	"ORDER_CANCELLED":    {update(parties+" user:rider-5", `"status":"cancelled","version":7`)},
}

func TestRoomsOfEveryOrderEvent(t *testing.T) {
	t.Parallel()
	for _, eventType := range golden(t, "order") {
		t.Run(eventType, func(t *testing.T) {
			t.Parallel()
			want, ok := table[eventType]
			if !ok {
				t.Fatal("the table does not say what this event means")
			}
			data := wire(t, "order", eventType)
			got := said(t, eventlog.Orders, eventType, data)
			var raw struct {
				Riders []string `json:"riders"`
			}
			_ = json.Unmarshal(data, &raw) // the riders of ORDER_OFFERED have another type
			want = append([]string(nil), want...)
			for i := range want {
				want[i] = strings.Replace(want[i], "RIDERS", "user:"+strings.Join(raw.Riders, " user:"), 1)
			}
			if d := cmp.Diff(want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

// The payment status in the message is the one in the ctx of the payment event. If ctx
// has none, the order's payment status did not change and there is no message.
func TestRoomsOfEveryPaymentEvent(t *testing.T) {
	t.Parallel()
	for _, eventType := range golden(t, "payment") {
		t.Run(eventType, func(t *testing.T) {
			t.Parallel()
			var e map[string]any
			if err := json.Unmarshal(wire(t, "payment", eventType), &e); err != nil {
				t.Fatal(err)
			}
			ctx := e["ctx"].(map[string]any)
			e["orderId"] = theOrder
			ctx["customerId"], ctx["restaurantId"], ctx["paymentStatus"] = "cust-9", "res-17", "refund_pending"
			want := []string{update(parties, `"paymentStatus":"refund_pending"`)}
			if d := cmp.Diff(want, said(t, eventlog.Payments, eventType, marshal(t, e))); d != "" {
				t.Error(d)
			}
			delete(ctx, "paymentStatus")
			if got := said(t, eventlog.Payments, eventType, marshal(t, e)); got != nil {
				t.Errorf("without a payment status: %v", got)
			}
			delete(e, "orderId")
			ctx["paymentStatus"] = "refunded"
			if got := said(t, eventlog.Payments, eventType, marshal(t, e)); got != nil {
				t.Errorf("without an order: %v", got)
			}
		})
	}
}

// A customer and a rider may have the same id. So each message in a room user:<id> says
// for which of the two it is, or that it is for both.
func TestMessagesToUsersSayForWhichRole(t *testing.T) {
	t.Parallel()
	for _, aggregate := range []string{"order", "payment"} {
		topic := map[string]string{"order": eventlog.Orders, "payment": eventlog.Payments}[aggregate]
		for _, eventType := range golden(t, aggregate) {
			all, err := Rooms(t.Context(), &subjectkeystest.Keys{}, &eventlog.Event{Topic: topic, Type: eventType, Version: 7, Time: at, Data: wire(t, aggregate, eventType)})
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range all {
				if len(m.Roles) != len(m.Rooms) {
					t.Fatalf("%s: %s has roles %v for rooms %v", eventType, m.Event, m.Roles, m.Rooms)
				}
				for i, room := range m.Rooms {
					want := domain.Role("")
					switch {
					case room == "user:cust-9":
						want = domain.Customer
					case strings.HasPrefix(room, "user:rider-"):
						want = domain.Rider
					}
					if m.Roles[i] != want {
						t.Errorf("%s: %s in %s is for %q, not %q", eventType, m.Event, room, m.Roles[i], want)
					}
				}
				if topic == eventlog.Orders && (m.Version != 7 || m.Assigned != (eventType == "RIDER_ASSIGNED") || m.Unassigned != (eventType == "RIDER_UNASSIGNED")) {
					t.Errorf("%s: %+v", eventType, m)
				}
			}
		}
	}
	both := strings.ReplaceAll(string(wire(t, "order", "ORDER_PICKED_UP")), "rider-5", "cust-9")
	all, err := Rooms(t.Context(), &subjectkeystest.Keys{}, &eventlog.Event{Topic: eventlog.Orders, Type: "ORDER_PICKED_UP", Version: 7, Time: at, Data: []byte(both)})
	if err != nil || strings.Join(all[0].Rooms, " ") != parties || all[0].Roles[0] != "" {
		t.Errorf("%v %v, %v", all[0].Rooms, all[0].Roles, err)
	}
}

func TestRoomsOfCancelledOffers(t *testing.T) {
	t.Parallel()
	data := []byte(`{"orderId":"` + theOrder + `","reason":"closed","by":"ops","riders":["rider-5","rider-6"],"ctx":{"customerId":"cust-9","restaurantId":"res-17","status":"cancelled"}}`)
	want := []string{
		update(parties, `"status":"cancelled","version":7`),
		`order:taken [user:rider-5 user:rider-6] {"orderId":"` + theOrder + `","reason":"cancelled"}`,
	}
	if d := cmp.Diff(want, said(t, eventlog.Orders, "ORDER_CANCELLED", data)); d != "" {
		t.Error(d)
	}
}

func TestRoomsOfEmitted(t *testing.T) {
	t.Parallel()
	got := said(t, eventlog.Feed, rooms.Emitted, []byte(`{"event":"promo:new","room":"user:u1","payload":{"a":
1}}`))
	if d := cmp.Diff([]string{`promo:new [user:u1] {"a":1}`}, got); d != "" {
		t.Error(d)
	}
	m, err := Rooms(t.Context(), &subjectkeystest.Keys{}, &eventlog.Event{Topic: eventlog.Feed, Type: rooms.Emitted, Data: []byte(`{"event":"x","room":"user:u1","payload":1,"role":"rider"}`)})
	if err != nil || len(m) != 1 || len(m[0].Roles) != 1 || m[0].Roles[0] != domain.Rider {
		t.Errorf("with a role: %+v, %v", m, err)
	}
	for _, bad := range []string{`{`, `{"event":"feed:reset","room":"user:u1","payload":1}`, `{"event":"x","room":"nowhere","payload":1}`, `{"event":"x","room":"ops"}`} {
		if m, err := Rooms(t.Context(), &subjectkeystest.Keys{}, &eventlog.Event{Topic: eventlog.Feed, Type: rooms.Emitted, Data: []byte(bad)}); err == nil {
			t.Errorf("%s means %v", bad, m)
		}
	}
}

func TestRoomsOfOtherTopics(t *testing.T) {
	t.Parallel()
	for _, topic := range []string{eventlog.Riders, eventlog.Restaurants, eventlog.PaymentWebhooks} {
		if m, err := Rooms(t.Context(), &subjectkeystest.Keys{}, &eventlog.Event{Topic: topic, Type: "ANY"}); err != nil || m != nil {
			t.Errorf("%s: %v, %v", topic, m, err)
		}
	}
}

func said(t *testing.T, topic, eventType string, data []byte) []string {
	t.Helper()
	all, err := Rooms(t.Context(), &subjectkeystest.Keys{}, &eventlog.Event{Topic: topic, Type: eventType, Version: 7, Time: at, Data: data})
	if err != nil {
		t.Fatal(err)
	}
	return lines(all)
}

func lines(all []rooms.Message) []string {
	var out []string
	for _, m := range all {
		out = append(out, m.Event+" ["+strings.Join(m.Rooms, " ")+"] "+string(m.Payload))
	}
	return out
}

func golden(t *testing.T, aggregate string) []string {
	t.Helper()
	files, err := filepath.Glob("../../domain/" + aggregate + "/testdata/*.v1.json")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden wire files", err)
	}
	for i := range files {
		files[i] = strings.TrimSuffix(filepath.Base(files[i]), ".v1.json")
	}
	return files
}

func wire(t *testing.T, aggregate, eventType string) []byte {
	t.Helper()
	b, err := os.ReadFile("../../domain/" + aggregate + "/testdata/" + eventType + ".v1.json")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
