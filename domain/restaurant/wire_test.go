package restaurant_test

import (
	"testing"

	"tomato/domain/domaintest"
	"tomato/domain/restaurant"
)

func TestWire(t *testing.T) {
	t.Parallel()
	domaintest.Golden[restaurant.Event](t, restaurant.Decode, restaurant.Forms, restaurant.Types,
		restaurant.RestaurantRegistered{RestaurantID: "res-17", Name: "Udupi Hut", Location: at, Address: "12 MG Road"},
		restaurant.RestaurantUpdated{RestaurantID: "res-17", Name: "Udupi House", Location: at, Address: "14 MG Road"},
		restaurant.RestaurantOpened{RestaurantID: "res-17"},
		restaurant.RestaurantClosed{RestaurantID: "res-17"},
		restaurant.MenuItemSet{RestaurantID: "res-17", Item: item("dosa", "Masala Dosa", 15000, "INR", true)},
		restaurant.MenuItemRemoved{RestaurantID: "res-17", ItemID: "dosa"},
	)
}
