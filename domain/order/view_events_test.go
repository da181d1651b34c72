package order_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog/subjectkeys"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// What the golden events tell of whom, by words that occur nowhere else.
var (
	personalWords   = []string{"cust-9", "Masala", "Church Street", "77.6101", "ring twice", "till-3", "customerId", "deliverTo", "externalReference", `"items"`}
	restaurantWords = []string{"res-17", "12 MG Road"}
)

// TestWhoSeesWhat is the rule for the view of an order and for the data of each
// of its events: for every viewer, while the order is rider-5's and after
// rider-5 gave it back and rider-6 has it.
func TestWhoSeesWhat(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) < 17 {
		t.Fatal("the golden events are missing", err)
	}
	keys := &subjectkeystest.Keys{}
	opened := func(data []byte) string {
		b, err := subjectkeys.OpenEvent(t.Context(), keys, "cust-9", data)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	type sight struct {
		personal bool
		riders   []string // of rider-5, rider-6
	}
	all := []string{"rider-5", "rider-6"}
	rider := func(id string) domain.Actor { return domain.Actor{Role: domain.Rider, Sub: id} }
	viewers := []domain.Actor{
		{Role: domain.Customer, Sub: "cust-9"},
		{Role: domain.Restaurant, Sub: "staff", RestaurantID: "res-17"},
		{Role: domain.Ops, Sub: "op"},
		rider("rider-5"), rider("rider-6"), rider("rider-7"),
		{Role: "a later role", Sub: "rider-5"},
	}
	for _, c := range []struct {
		name  string
		state order.State
		want  []sight // by viewer
	}{
		{"nobody's", order.State{Status: order.StatusReadyForRider},
			[]sight{{true, nil}, {true, all}, {true, all}, {false, []string{"rider-5"}}, {false, []string{"rider-6"}}, {false, nil}, {false, nil}}},
		{"rider-5's", order.State{Status: order.StatusRiderAssigned, RiderID: "rider-5", RiderName: subjectkeystest.Name("rider-5", "Una Rao")},
			[]sight{{true, []string{"rider-5"}}, {true, all}, {true, all}, {true, []string{"rider-5"}}, {false, []string{"rider-6"}}, {false, nil}, {false, nil}}},
		{"rider-6's, dropped by rider-5", order.State{Status: order.StatusDelivered, RiderID: "rider-6", Drops: []order.Drop{{RiderID: "rider-5"}}},
			[]sight{{true, []string{"rider-6"}}, {true, all}, {true, all}, {false, []string{"rider-5"}}, {true, []string{"rider-6"}}, {false, nil}, {false, nil}}},
	} {
		s := c.state
		s.CustomerID, s.RestaurantID, s.Items = "cust-9", "res-17", []order.Item{{Name: "Masala Dosa"}}
		s.DeliverTo, s.ExternalReference, s.Round = subjectkeystest.DeliverTo("cust-9", `{"address":"4 Church Street","instructions":"ring twice"}`), "till-3", 1
		for i, viewer := range viewers {
			check := func(what, full, shown string) {
				t.Helper()
				name := c.name + ": " + string(viewer.Role) + " " + viewer.Sub + ": " + what
				for _, word := range personalWords {
					if has, want := strings.Contains(shown, word), c.want[i].personal && strings.Contains(full, word); has != want {
						t.Errorf("%s: shows %s: %v\n%s", name, word, has, shown)
					}
				}
				for _, id := range all {
					if has, want := strings.Contains(shown, id), slices.Contains(c.want[i].riders, id) && strings.Contains(full, id); has != want {
						t.Errorf("%s: shows %s: %v\n%s", name, id, has, shown)
					}
				}
				if strings.Contains(shown, "Una Rao") != (slices.Contains(c.want[i].riders, "rider-5") && strings.Contains(full, "Una Rao")) {
					t.Errorf("%s: the rider's name: %s", name, shown)
				}
				for _, word := range restaurantWords {
					if strings.Contains(full, word) && !strings.Contains(shown, word) {
						t.Errorf("%s: lacks %s\n%s", name, word, shown)
					}
				}
			}
			for _, f := range files {
				data, err := os.ReadFile(f)
				if err != nil {
					t.Fatal(err)
				}
				eventType, _, _ := strings.Cut(filepath.Base(f), ".")
				shown, err := s.EventData(eventType, 1, data, viewer)
				if err != nil {
					t.Fatal(f, err)
				}
				check(filepath.Base(f), opened(data), opened(shown))
			}
			v := order.NewView(&s, order.PaymentPaid)
			if s.RiderID != "" {
				v.RiderLocation = &order.RiderLocation{RiderID: s.RiderID}
			}
			show := func(v order.View) []byte {
				if err := subjectkeys.OpenOrder(t.Context(), keys, &v); err != nil {
					t.Fatal(err)
				}
				b, err := json.Marshal(v)
				if err != nil {
					t.Fatal(err)
				}
				return b
			}
			full, shown := show(v), show(v.For(viewer))
			check("view", string(full), string(shown))
			if want := viewer.Role == domain.Restaurant || viewer.Role == domain.Ops; strings.Contains(string(shown), `"dispatch"`) != want {
				t.Errorf("%s sees dispatch: %v", viewer.Role, !want)
			}
		}
	}
}

// Support is shown no address, no name, no position, and no reason of a customer or a rider,
// and everything else.
func TestSupportIsShownNoPersonalTexts(t *testing.T) {
	t.Parallel()
	support := domain.Actor{Role: domain.Support, Sub: "s1"}
	files, err := filepath.Glob("testdata/*.json")
	if err != nil || len(files) < len(order.Types) {
		t.Fatal(files, err)
	}
	var s order.State
	removed := 0
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		eventType, _, _ := strings.Cut(filepath.Base(f), ".")
		shown, err := s.EventData(eventType, 1, data, support)
		if err != nil {
			t.Fatal(f, err)
		}
		if strings.Contains(string(shown), `"s1.`) {
			t.Errorf("%s: %s", f, shown)
		}
		var before, after map[string]any
		if json.Unmarshal(data, &before) != nil || json.Unmarshal(shown, &after) != nil {
			t.Fatal(f)
		}
		for name := range before {
			if _, has := after[name]; !has {
				removed++
				if name != "deliverTo" && name != "riderName" && name != "reason" {
					t.Errorf("%s lacks %s: %s", f, name, shown)
				}
			}
		}
	}
	if removed < 4 {
		t.Errorf("%d fields were removed", removed)
	}
	full := order.View{By: domain.Customer, Reason: "moved away", RiderName: "Una Rao", DeliverTo: &order.DeliverTo{Address: "4 Church Street"},
		RiderLocation: &order.RiderLocation{RiderID: "r1"}, Sealed: order.SealedFields{DeliverTo: "a", RiderName: "b", CustomerID: "c1", RiderID: "r1"}, CustomerID: "c1", RiderID: "r1"}
	want := order.View{By: domain.Customer, CustomerID: "c1", RiderID: "r1", Sealed: order.SealedFields{CustomerID: "c1", RiderID: "r1"}}
	if got := full.For(support); !reflect.DeepEqual(got, want) {
		t.Errorf("the view is %+v", got)
	}
	full.By = domain.Restaurant
	if got := full.For(support); got.Reason != full.Reason {
		t.Errorf("the reason of a restaurant is %q", got.Reason)
	}
}

// Whoever made an event is shown as the rest of it: riders and customers by the
// rules for riders and for what is personal.
func TestWhoMadeAnEventIsShownByTheSameRule(t *testing.T) {
	t.Parallel()
	s := order.State{RiderID: "r1", CustomerID: "c1"}
	for _, c := range []struct {
		viewer     domain.Actor
		data, want string
	}{
		{domain.Actor{Role: domain.Customer, Sub: "c1"}, `{"actor":{"role":"rider","sub":"r2"}}`, `{"actor":{"role":"rider"}}`},
		{domain.Actor{Role: domain.Customer, Sub: "c1"}, `{"actor":{"role":"rider","sub":"r1"}}`, `{"actor":{"role":"rider","sub":"r1"}}`},
		{domain.Actor{Role: domain.Rider, Sub: "r2"}, `{"actor":{"role":"customer","sub":"c1"}}`, `{"actor":{"role":"customer"}}`},
		{domain.Actor{Role: domain.Rider, Sub: "r1"}, `{"actor":{"role":"customer","sub":"c1"}}`, `{"actor":{"role":"customer","sub":"c1"}}`},
		{domain.Actor{Role: domain.Rider, Sub: "r2"}, `{"n":12345678901234567890}`, `{"n":12345678901234567890}`},
	} {
		if got, err := s.EventData("ORDER_PAID", 1, []byte(c.data), c.viewer); err != nil || string(got) != c.want {
			t.Errorf("%s %s: %s of %s, %v", c.viewer.Role, c.viewer.Sub, got, c.data, err)
		}
	}
	if _, err := s.EventData("ORDER_PAID", 1, []byte(`[`), domain.Actor{Role: domain.Rider}); err == nil {
		t.Error("data that is no object was shown")
	}
}

// A newer build may have given a field that must be hidden another name.
func TestNothingIsShownOfEventsThatThisBuildDoesNotKnow(t *testing.T) {
	t.Parallel()
	s := order.State{RiderID: "r1", CustomerID: "c1"}
	const data = `{"whereTo":"4 Church Street"}`
	for _, c := range []struct {
		eventType string
		version   int
		shown     bool
	}{{"ORDER_PAID", 1, true}, {"ORDER_PAID", 2, false}, {"ORDER_FLOWN", 1, false}} {
		for role, all := range map[domain.Role]bool{domain.Customer: false, domain.Rider: false, domain.Restaurant: true, domain.Ops: true, domain.Support: false} {
			want := `{}`
			if c.shown || all {
				want = data
			}
			if got, err := s.EventData(c.eventType, c.version, []byte(data), domain.Actor{Role: role, Sub: "c1"}); err != nil || string(got) != want {
				t.Errorf("%s, version %d: %s sees %s, %v", c.eventType, c.version, role, got, err)
			}
		}
	}
}
