package queryside_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// TestErasedPeople: every query shows who was erased as erased, and everything else as
// before.
func TestErasedPeople(t *testing.T) {
	t.Parallel()
	q := newQueries(t)
	q.order(assigned(1))
	other := assigned(2)
	other.CustomerID, other.DeliverTo = "c2", subjectkeystest.DeliverTo("c2", `{"address":"7 Other Road"}`)
	other.RiderID, other.RiderName = "rider9", subjectkeystest.Name("rider9", "Bo")
	q.order(other)
	damaged := assigned(3)
	damaged.DeliverTo, damaged.RiderName = other.DeliverTo, "no sealed text" // of another customer
	q.order(damaged)
	for n, s := range map[int]order.State{1: assigned(1), 2: other} {
		q.exec(`UPDATE orders_g1.order_events SET data = $2 WHERE order_id = $1 AND version = 1`, orderID(n), `{"orderId":"o", "deliverTo":"`+string(s.DeliverTo)+`","customerId":"c","n":1.50}`)
		q.exec(`UPDATE orders_g1.order_events SET data = $2 WHERE order_id = $1 AND version = 2`, orderID(n), `{"riderId":"`+s.RiderID+`","riderName":"`+string(s.RiderName)+`"}`)
	}
	for id, name := range map[string]string{"rider1": "Una", "rider9": "Bo"} {
		q.rider(rider.State{ID: id, Version: 3, Name: subjectkeystest.Name(id, name), Verification: rider.Verified, Online: true}, &centre, time.Now())
	}
	show := func() string {
		var b strings.Builder
		for _, path := range []string{"/v1/orders/" + orderID(1), "/v1/orders/" + orderID(2), "/v1/orders", "/v1/orders/" + orderID(1) + "/events", "/v1/orders/" + orderID(2) + "/events",
			"/v1/riders/rider1", "/v1/riders/rider9", "/v1/riders/nearby?lat=12.9716&lng=77.5946"} {
			a := q.get(ops, path)
			if a.status != 200 {
				t.Fatalf("%s: %d %v", path, a.status, a.body)
			}
			b.WriteString(text(a.body))
		}
		return b.String()
	}
	count := func(said, word string, want int) {
		t.Helper()
		if n := strings.Count(said, word); n != want {
			t.Errorf("%d times %q, want %d:\n%s", n, word, want, said)
		}
	}
	before := show()
	count(before, "ring twice", 3) // the order, the list, its events
	count(before, "7 Other Road", 3)
	count(before, `"Una"`, 2)
	count(before, `"Bo"`, 5) // two orders, events, two of the rider
	count(before, `{"erased":true}`, 1)
	count(before, "s1.", 0)

	q.keys.Erase(subjectkeys.Customer("c1"))
	q.keys.Erase(subjectkeys.Rider("rider1"))
	after := show()
	count(after, "ring twice", 0)
	count(after, `"Una"`, 0)
	count(after, "7 Other Road", 3)
	count(after, `"Bo"`, 5)
	count(after, `"deliverTo":{"erased":true}`, 4)
	count(after, `"riderName":"erased"`, 4)
	count(after, `"name":"erased"`, 2)
	count(after, "s1.", 0)

	q.keys.Err = eventlog.Unavailable(errors.New("no brokers"))
	for _, path := range []string{"/v1/orders/" + orderID(1), "/v1/orders", "/v1/orders/" + orderID(1) + "/events", "/v1/riders/rider1", "/v1/riders/nearby?lat=12.9716&lng=77.5946"} {
		if a := q.get(ops, path); a.status != 503 || a.body["code"] != "unavailable" {
			t.Errorf("%s without keys: %d %v", path, a.status, a.body)
		}
	}
}

// TestReasonsArePersonal: what a customer or a rider has given as a reason is sealed, and
// shown until they are erased, also to those who may not see the rider. What others have
// given stays as it is.
func TestReasonsArePersonal(t *testing.T) {
	t.Parallel()
	q := newQueries(t)
	theirs := string(subjectkeystest.Seal(subjectkeys.Customer("c1"), subjectkeys.FieldReason, "I am ill"))
	riders := string(subjectkeystest.Seal(subjectkeys.Rider("rider3"), subjectkeys.FieldReason, "flat tyre"))
	mine := assigned(1)
	mine.Status, mine.By, mine.Reason = order.StatusCancelled, domain.Customer, theirs
	q.order(mine)
	kitchens, old := assigned(2), assigned(3)
	kitchens.Status, kitchens.By, kitchens.Reason = order.StatusCancelled, domain.Restaurant, "kitchen fire"
	old.Status, old.By, old.Reason = order.StatusCancelled, domain.Customer, "written before reasons were sealed"
	q.order(kitchens)
	q.order(old)
	for v, data := range []string{`{"orderId":"o"}`, `{"riderId":"rider3","by":"rider","reason":"` + riders + `"}`, `{"riderId":"rider1","by":"customer","reason":"` + theirs + `"}`} {
		q.exec(`UPDATE orders_g1.order_events SET data = $3 WHERE order_id = $1 AND version = $2`, mine.ID, v+1, data)
	}
	shows := func(reasons ...string) {
		t.Helper()
		for _, who := range []domain.Actor{ops, customer, offered} {
			var got []any
			for n := range 3 {
				got = append(got, q.get(who, "/v1/orders/"+orderID(n+1)).body["reason"])
			}
			for _, e := range q.get(who, "/v1/orders/"+mine.ID+"/events").items()[1:] {
				data, _ := e["data"].(map[string]any)
				got = append(got, data["reason"])
			}
			for i, want := range reasons {
				if got[i] != want {
					t.Errorf("%s is shown %q, want %q", who.Role, got, reasons)
				}
			}
		}
	}
	shows("I am ill", "kitchen fire", old.Reason, "flat tyre", "I am ill")
	q.keys.Erase(subjectkeys.Customer("c1"))
	shows("erased", "kitchen fire", old.Reason, "flat tyre", "erased")
	q.keys.Erase(subjectkeys.Rider("rider3"))
	shows("erased", "kitchen fire", old.Reason, "erased", "erased")
}

// TestEventsSayWhoMadeThem: the actor of each event, as the caller may see it.
func TestEventsSayWhoMadeThem(t *testing.T) {
	t.Parallel()
	q := newQueries(t)
	s := assigned(1)
	s.Version = 6
	q.order(s)
	for v, actor := range []string{"customer:c1", "", "restaurant:staff1", "rider:rider1", "rider:rider3", "nonsense"} {
		q.exec(`UPDATE orders_g1.order_events SET actor = $3 WHERE order_id = $1 AND version = $2`, s.ID, v+1, actor)
	}
	for _, c := range []struct {
		actor string
		want  string
	}{
		{"ops", `{"role":"customer","sub":"c1"} - {"role":"restaurant","sub":"staff1"} {"role":"rider","sub":"rider1"} {"role":"rider","sub":"rider3"} -`},
		{"customer", `{"role":"customer","sub":"c1"} - {"role":"restaurant","sub":"staff1"} {"role":"rider","sub":"rider1"} {"role":"rider"} -`},
		{"dropped", `{"role":"customer"} - {"role":"restaurant","sub":"staff1"} {"role":"rider"} {"role":"rider","sub":"rider3"} -`},
	} {
		who := ops
		switch c.actor {
		case "customer":
			who = customer
		case "dropped":
			who = dropped
		}
		var got []string
		for _, e := range q.get(who, "/v1/orders/"+s.ID+"/events").items() {
			if e["actor"] == nil {
				got = append(got, "-")
				continue
			}
			got = append(got, text(e["actor"]))
		}
		if said := strings.Join(got, " "); said != c.want {
			t.Errorf("to %s: %s, want %s", c.actor, said, c.want)
		}
	}
}
