package restaurant_test

import (
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/domaintest"
	"tomato/domain/order"
	"tomato/domain/restaurant"
)

var (
	t0   = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at   = domain.Point{Lng: 77.5, Lat: 12.9}
	dosa = item("i1", "Dosa", 150, "INR", true)

	unknown []restaurant.Event
	closed  = then(unknown, restaurant.RestaurantRegistered{RestaurantID: "res1", Name: "Hut", Location: at}, restaurant.MenuItemSet{RestaurantID: "res1", Item: dosa})
	open    = then(closed, restaurant.RestaurantOpened{RestaurantID: "res1"})
)

func item(id, name string, amount int64, currency string, available bool) restaurant.MenuItem {
	return restaurant.MenuItem{ItemID: id, Name: name, Price: domain.Money{Amount: amount, Currency: currency}, Available: available}
}

func then(history []restaurant.Event, events ...restaurant.Event) []restaurant.Event {
	return append(append([]restaurant.Event{}, history...), events...)
}

func given(history []restaurant.Event) restaurant.State {
	var s restaurant.State
	for i, e := range history {
		s = restaurant.Evolve(s, e, t0.Add(time.Duration(i)*time.Second))
	}
	return s
}

func TestTransitions(t *testing.T) {
	t.Parallel()
	put := restaurant.Put{RestaurantID: "res1", Name: "Hut", Location: at}
	columns := [][]restaurant.Event{unknown, closed, open}
	for _, row := range []struct {
		name    string
		command domain.Command
		cells   string
	}{
		// command             unknown | closed | open
		{"PUT, nothing new", put, "RESTAURANT_REGISTERED | = | ="},
		{"PUT, another place", restaurant.Put{RestaurantID: "res1", Name: "Hut", Location: domain.Point{Lng: 1}}, "RESTAURANT_REGISTERED | RESTAURANT_UPDATED | RESTAURANT_UPDATED"},
		{"PUT, another name", restaurant.Put{RestaurantID: "res1", Name: "Hat", Location: at}, "RESTAURANT_REGISTERED | RESTAURANT_UPDATED | RESTAURANT_UPDATED"},
		{"PUT, an address", restaurant.Put{RestaurantID: "res1", Name: "Hut", Location: at, Address: "2 Hill"}, "RESTAURANT_REGISTERED | RESTAURANT_UPDATED | RESTAURANT_UPDATED"},
		{"open", restaurant.Open{}, "404 | RESTAURANT_OPENED | ="},
		{"close", restaurant.Close{}, "404 | = | RESTAURANT_CLOSED"},
		{"menu item, new", restaurant.SetMenuItem{Item: item("i2", "Idli", 80, "INR", true)}, "404 | MENU_ITEM_SET | MENU_ITEM_SET"},
		{"menu item, the same", restaurant.SetMenuItem{Item: dosa}, "404 | = | ="},
		{"menu item, unavailable", restaurant.SetMenuItem{Item: item("i1", "Dosa", 150, "INR", false)}, "404 | MENU_ITEM_SET | MENU_ITEM_SET"},
		{"menu item removed", restaurant.RemoveMenuItem{ItemID: "i1"}, "404 | MENU_ITEM_REMOVED | MENU_ITEM_REMOVED"},
		{"menu item removed that is not there", restaurant.RemoveMenuItem{ItemID: "i9"}, "404 | = | ="},
	} {
		cells := domaintest.Columns(row.cells)
		for i, history := range columns {
			s := given(history)
			e, err := restaurant.Decide(&s, row.command, t0)
			if got := domaintest.Outcome(t, e, err, ""); got != cells[i] {
				t.Errorf("%s, column %d: got %s, want %s", row.name, i, got, cells[i])
			}
			if e == nil {
				continue
			}
			after := restaurant.Evolve(s, e, t0)
			if again, err := restaurant.Decide(&after, row.command, t0); again != nil || err != nil {
				t.Errorf("%s, column %d: decided again: %#v, %v", row.name, i, again, err)
			}
			if before := given(history); !reflect.DeepEqual(s, before) {
				t.Errorf("%s, column %d: Evolve changed its input", row.name, i)
			}
			var back restaurant.State
			b, err := json.Marshal(after)
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(back, after) {
				t.Errorf("%s, column %d: through JSON (%v):\n%#v\nwant\n%#v", row.name, i, err, back, after)
			}
		}
	}
	if _, err := restaurant.Decide(&restaurant.State{Version: 1}, nil, t0); err == nil {
		t.Error("no command is decided")
	}
}

func TestPrice(t *testing.T) {
	t.Parallel()
	menu := then(closed,
		restaurant.MenuItemSet{Item: item("i2", "Idli", 80, "INR", true)},
		restaurant.MenuItemSet{Item: item("off", "Vada", 60, "INR", false)},
		restaurant.MenuItemSet{Item: item("usd", "Pie", 5, "USD", true)})
	serving := then(menu, restaurant.RestaurantOpened{})
	line := func(ids ...string) (lines []restaurant.Line) {
		for i, id := range ids {
			lines = append(lines, restaurant.Line{ItemID: id, Quantity: i + 1})
		}
		return lines
	}
	for _, c := range []struct {
		name  string
		given []restaurant.Event
		lines []restaurant.Line
		code  domain.Code
	}{
		{"priced", serving, line("i1", "i2"), ""},
		{"unknown item", serving, line("i1", "nope"), restaurant.CodeUnknownItem},
		{"two currencies", serving, line("i1", "usd"), restaurant.CodeCurrencyMismatch},
		{"closed", menu, line("i1"), restaurant.CodeClosed},
		{"unavailable", serving, line("i1", "off"), restaurant.CodeItemUnavailable},
		{"what does not fit goes before what is not possible now", menu, line("i1", "usd"), restaurant.CodeCurrencyMismatch},
		{"closed goes before unavailable", menu, line("off"), restaurant.CodeClosed},
	} {
		s := given(c.given)
		items, currency, err := s.Price(c.lines)
		if domain.RefusedWith(err) != c.code || err != nil && (c.code == "" || items != nil || currency != "") {
			t.Errorf("%s: got %v, %q, %v, want %q", c.name, items, currency, err, c.code)
		}
		want := []order.Item{{ItemID: "i1", Name: "Dosa", UnitPrice: 150, Quantity: 1}, {ItemID: "i2", Name: "Idli", UnitPrice: 80, Quantity: 2}}
		if err == nil && (!reflect.DeepEqual(items, want) || currency != "INR") {
			t.Errorf("%s: got %v %s, want %v INR", c.name, items, currency, want)
		}
	}
}

func TestView(t *testing.T) {
	t.Parallel()
	s := given(then(open, restaurant.MenuItemSet{Item: item("a", "Apam", 40, "INR", true)}))
	v := restaurant.NewView(&s)
	if len(v.Menu) != 2 || v.Menu[0].ItemID != "a" || v.Menu[1] != dosa || !v.Open || v.Version != 4 {
		t.Errorf("%+v", v)
	}
	s = given(closed[:1])
	b, err := json.Marshal(restaurant.NewView(&s))
	if want := `{"restaurantId":"res1","version":1,"name":"Hut","location":{"type":"Point","coordinates":[77.5,12.9]},"open":false,"menu":[]}`; err != nil || string(b) != want {
		t.Errorf("got %s, %v\nwant %s", b, err, want)
	}
}

func TestWire(t *testing.T) {
	t.Parallel()
	domaintest.Golden[restaurant.Event](t, restaurant.Decode, restaurant.Types,
		restaurant.RestaurantRegistered{RestaurantID: "res-17", Name: "Udupi Hut", Location: at, Address: "12 MG Road"},
		restaurant.RestaurantUpdated{RestaurantID: "res-17", Name: "Udupi House", Location: at, Address: "14 MG Road"},
		restaurant.RestaurantOpened{RestaurantID: "res-17"},
		restaurant.RestaurantClosed{RestaurantID: "res-17"},
		restaurant.MenuItemSet{RestaurantID: "res-17", Item: item("dosa", "Masala Dosa", 15000, "INR", true)},
		restaurant.MenuItemRemoved{RestaurantID: "res-17", ItemID: "dosa"},
	)
}
