package queryside_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// TestWhoSeesWhatOfAnOrder asks every endpoint that shows an order, as every
// party, in every state that decides who sees what.
func TestWhoSeesWhatOfAnOrder(t *testing.T) {
	t.Parallel()
	q := newQueries(t)
	const events = 6
	put := func(n int, change func(*order.State)) {
		s := assigned(n)
		s.Version, s.RiderID, s.RiderName, s.ExternalReference = events, "", "", "till-3"
		change(&s)
		q.order(s)
		ctx := `"ctx":{"customerId":"c1","restaurantId":"r1","riderId":"rider1"}`
		for v, e := range []string{
			`{"orderId":"o","customerId":"c1","items":[{"name":"Dosa"}],"deliverTo":"` + string(s.DeliverTo) + `","externalReference":"till-3",` + ctx + `}`,
			`{"orderId":"o","order":{"customerId":"c1","items":[{"name":"Dosa"}],"deliverTo":{"address":"12","instructions":"ring twice"},"externalReference":"till-3"},` + ctx + `}`,
			`{"orderId":"o","riders":[{"riderId":"rider1","distanceMeters":11},{"riderId":"rider2","distanceMeters":22},{"riderId":"rider3","distanceMeters":33}],` + ctx + `}`,
			`{"orderId":"o","riderId":"rider2","wave":1,` + ctx + `}`,
			`{"orderId":"o","riderId":"rider3","riderName":"` + string(subjectkeystest.Name("rider3", "Name of rider3")) + `","claimId":4,"riders":["rider1","rider2"],` + ctx + `}`,
			`{"orderId":"o","riderId":"rider3","claimId":4,"reason":"flat tyre",` + ctx + `}`,
		} {
			q.exec(`UPDATE orders_g1.order_events SET data = $3 WHERE order_id = $1 AND version = $2`, s.ID, v+1, e)
		}
	}
	put(1, func(s *order.State) { s.Status = order.StatusReadyForRider })
	put(2, func(s *order.State) {
		s.RiderID, s.RiderName = "rider1", subjectkeystest.Name("rider1", "Name of rider1")
	})
	put(3, func(s *order.State) {
		s.Status, s.RiderID, s.RiderName = order.StatusDelivered, "rider1", subjectkeystest.Name("rider1", "Name of rider1")
	})
	put(4, func(s *order.State) {
		s.Status, s.RiderID, s.RiderName = order.StatusCancelled, "rider1", subjectkeystest.Name("rider1", "Name of rider1")
	})
	everything := "c1 Dosa ring till-3 rider1 rider2 rider3"
	for _, c := range []struct {
		order  int
		actor  domain.Actor
		events string // the names that the events show
		view   string
	}{
		{1, customer, "c1 Dosa ring till-3", "c1 Dosa ring till-3"},
		{1, kitchen, everything, "c1 Dosa ring till-3"},
		{1, ops, everything, "c1 Dosa ring till-3"},
		{1, offered, "rider2", ""},
		{1, dropped, "rider3", ""},
		{2, customer, "c1 Dosa ring till-3 rider1", "c1 Dosa ring till-3 rider1"},
		{2, kitchen, everything, "c1 Dosa ring till-3 rider1"},
		{2, ops, everything, "c1 Dosa ring till-3 rider1"},
		{2, courier, "c1 Dosa ring till-3 rider1", "c1 Dosa ring till-3 rider1"},
		{2, offered, "rider2", ""},
		{2, dropped, "rider3", ""},
		{3, customer, "c1 Dosa ring till-3 rider1", "c1 Dosa ring till-3 rider1"},
		{3, courier, "c1 Dosa ring till-3 rider1", "c1 Dosa ring till-3 rider1"},
		{3, offered, "rider2", ""},
		{3, dropped, "rider3", ""},
		{4, courier, "c1 Dosa ring till-3 rider1", "c1 Dosa ring till-3 rider1"},
		{4, offered, "rider2", ""},
		{4, ops, everything, "c1 Dosa ring till-3 rider1"},
	} {
		says := func(what string, body any, want string) {
			t.Helper()
			shown := text(body)
			var has []string
			for _, word := range strings.Fields(everything) {
				if strings.Contains(shown, word) {
					has = append(has, word)
				}
			}
			if got := strings.Join(has, " "); got != want {
				t.Errorf("order %d, %s %s, %s tells %q, not %q:\n%s", c.order, c.actor.Role, c.actor.Sub, what, got, want, shown)
			}
			for _, hidden := range []string{`"deliverTo"`, `"customerId"`, `"externalReference"`, `"items":[{`} {
				if what != "the list" && strings.Contains(shown, hidden) != strings.Contains(want, "ring") {
					t.Errorf("order %d, %s %s, %s: %s\n%s", c.order, c.actor.Role, c.actor.Sub, what, hidden, shown)
				}
			}
		}
		path := "/v1/orders/" + orderID(c.order)
		says("the order", q.get(c.actor, path).body, c.view)
		list := q.get(c.actor, path+"/events").items()
		if len(list) != events || list[3]["data"].(map[string]any)["wave"] != 1.0 {
			t.Errorf("order %d, %s: %d events, the fourth %v", c.order, c.actor.Role, len(list), list[3])
		}
		says("its history", list, c.events)
		mine := q.get(c.actor, "/v1/orders").items()
		mine = slices.DeleteFunc(mine, func(o map[string]any) bool { return o["orderId"] != orderID(c.order) })
		if c.actor == offered || c.actor == dropped {
			if len(mine) > 0 {
				t.Errorf("%s lists an order that is not theirs", c.actor.Sub)
			}
			continue
		}
		says("the list", mine, c.view)
	}
}

// The events of an old order were removed from the read model: whoever may see the order
// is told so, and nobody else learns that it exists.
func TestEventsThatWereRemovedAreGone(t *testing.T) {
	t.Parallel()
	q := newQueries(t)
	q.order(assigned(1))
	q.exec(`DELETE FROM orders_g1.order_events`)
	for _, c := range []struct {
		actor domain.Actor
		want  string
	}{{customer, "410 history_removed"}, {ops, "410 history_removed"}, {otherCustomer, "404 order_not_found"}} {
		if a := q.get(c.actor, "/v1/orders/"+orderID(1)+"/events"); fmt.Sprint(a.status, " ", a.code()) != c.want {
			t.Errorf("%s %s: %d %v", c.actor.Role, c.actor.Sub, a.status, a.body)
		}
	}
}
