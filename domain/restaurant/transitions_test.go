package restaurant_test

import (
	"encoding/json"
	"reflect"
	"testing"

	"tomato/domain"
	"tomato/domain/domaintest"
	"tomato/domain/order"
	"tomato/domain/restaurant"
)

var aggregate = domaintest.Aggregate[restaurant.State, restaurant.Event]{
	Evolve: restaurant.Evolve,
	Decide: restaurant.Decide,
	Show: func(s *restaurant.State) string {
		if s.Open {
			return "open"
		}
		return "closed"
	},
}

var (
	given = aggregate.Given
	then  = aggregate.Then
)

var (
	at   = domain.Point{Lng: 77.5, Lat: 12.9}
	dosa = item("i1", "Dosa", 150, "INR", true)

	unknown []restaurant.Event
	closed  = then(unknown,
		restaurant.RestaurantRegistered{RestaurantID: "res1", Name: "Hut", Location: at}, restaurant.MenuItemSet{RestaurantID: "res1", Item: dosa})
	open = then(closed, restaurant.RestaurantOpened{RestaurantID: "res1"})
)

func item(id, name string, amount int64, currency string, available bool) restaurant.MenuItem {
	return restaurant.MenuItem{ItemID: id, Name: name, Price: domain.Money{Amount: amount, Currency: currency}, Available: available}
}

// TestTransitions is the table of transitions of a restaurant. After an event it says
// whether the restaurant is open.
func TestTransitions(t *testing.T) {
	t.Parallel()
	put := restaurant.Put{RestaurantID: "res1", Name: "Hut", Location: at}
	aggregate.Transitions(t, []domaintest.State[restaurant.Event]{
		{Name: "unknown", History: unknown},
		{Name: "closed", History: closed, Shown: "closed"},
		{Name: "open", History: open, Shown: "open"},
	}, []domaintest.Transition{
		{Name: "PUT, nothing new", Command: put, Then: `
			unknown      | RESTAURANT_REGISTERED → closed
			closed; open | =`},
		{
			Name:    "PUT, another place",
			Command: restaurant.Put{RestaurantID: "res1", Name: "Hut", Location: domain.Point{Lng: 1}},
			Then: `
			unknown | RESTAURANT_REGISTERED → closed
			closed  | RESTAURANT_UPDATED → closed
			open    | RESTAURANT_UPDATED → open`,
		},
		{Name: "PUT, another name", Command: restaurant.Put{RestaurantID: "res1", Name: "Hat", Location: at}, Then: `
			unknown | RESTAURANT_REGISTERED → closed
			closed  | RESTAURANT_UPDATED → closed
			open    | RESTAURANT_UPDATED → open`},
		{
			Name:    "PUT, an address",
			Command: restaurant.Put{RestaurantID: "res1", Name: "Hut", Location: at, Address: "2 Hill"},
			Then: `
			unknown | RESTAURANT_REGISTERED → closed
			closed  | RESTAURANT_UPDATED → closed
			open    | RESTAURANT_UPDATED → open`,
		},
		{Name: "open", Command: restaurant.Open{}, Then: `
			unknown | 404
			closed  | RESTAURANT_OPENED → open
			open    | =`},
		{Name: "close", Command: restaurant.Close{}, Then: `
			unknown | 404
			closed  | =
			open    | RESTAURANT_CLOSED → closed`},
		{Name: "menu item, new", Command: restaurant.SetMenuItem{Item: item("i2", "Idli", 80, "INR", true)}, Then: `
			unknown | 404
			closed  | MENU_ITEM_SET → closed
			open    | MENU_ITEM_SET → open`},
		{Name: "menu item, the same", Command: restaurant.SetMenuItem{Item: dosa}, Then: `
			unknown      | 404
			closed; open | =`},
		{
			Name:    "menu item, unavailable",
			Command: restaurant.SetMenuItem{Item: item("i1", "Dosa", 150, "INR", false)},
			Then: `
			unknown | 404
			closed  | MENU_ITEM_SET → closed
			open    | MENU_ITEM_SET → open`,
		},
		{Name: "menu item removed", Command: restaurant.RemoveMenuItem{ItemID: "i1"}, Then: `
			unknown | 404
			closed  | MENU_ITEM_REMOVED → closed
			open    | MENU_ITEM_REMOVED → open`},
		{Name: "menu item removed that is not there", Command: restaurant.RemoveMenuItem{ItemID: "i9"}, Then: `
			unknown      | 404
			closed; open | =`},
	})
}

// TestEvents is what the events carry.
func TestEvents(t *testing.T) {
	t.Parallel()
	aggregate.Examples(t, []domaintest.Example[restaurant.Event]{
		{
			Name:  "registered",
			Given: unknown,
			When:  restaurant.Put{RestaurantID: "res1", Name: "Hut", Location: at, Address: "2 Hill"},
			Then:  restaurant.RestaurantRegistered{RestaurantID: "res1", Name: "Hut", Location: at, Address: "2 Hill"},
		},
		{
			Name:  "updated: a PUT replaces all",
			Given: then(unknown, restaurant.RestaurantRegistered{RestaurantID: "res1", Name: "Hut", Location: at, Address: "2 Hill"}),
			When:  restaurant.Put{RestaurantID: "res1", Name: "Hat", Location: at},
			Then:  restaurant.RestaurantUpdated{RestaurantID: "res1", Name: "Hat", Location: at},
		},
		{Name: "opened", Given: closed, When: restaurant.Open{}, Then: restaurant.RestaurantOpened{RestaurantID: "res1"}},
		{Name: "closed", Given: open, When: restaurant.Close{}, Then: restaurant.RestaurantClosed{RestaurantID: "res1"}},
		{
			Name:  "menu item",
			Given: open,
			When:  restaurant.SetMenuItem{Item: item("i2", "Idli", 80, "INR", true)},
			Then:  restaurant.MenuItemSet{RestaurantID: "res1", Item: item("i2", "Idli", 80, "INR", true)},
		},
		{
			Name:  "menu item removed",
			Given: open,
			When:  restaurant.RemoveMenuItem{ItemID: "i1"},
			Then:  restaurant.MenuItemRemoved{RestaurantID: "res1", ItemID: "i1"},
		},
	})
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
