// Package restaurant is the restaurant aggregate: its location, whether it is open, and
// its menu, which gives the prices of orders.
//
// The comment of package domain lists the files.
package restaurant

import (
	"time"

	"tomato/domain"
	"tomato/domain/order"
)

// MenuItem is one thing on the menu.
type MenuItem struct {
	ItemID    string       `json:"itemId"`
	Name      string       `json:"name"`
	Price     domain.Money `json:"price"`
	Available bool         `json:"available"`
}

// State is a restaurant as its events have made it. Evolve never changes the
// menu in place.
type State struct {
	ID        string              `json:"restaurantId"`
	Version   int64               `json:"version"`
	Name      string              `json:"name"`
	Location  domain.Point        `json:"location"`
	Address   string              `json:"address,omitempty"`
	Open      bool                `json:"open"`
	Menu      map[string]MenuItem `json:"menu,omitempty"` // by item id
	CreatedAt time.Time           `json:"createdAt,omitzero"`
	UpdatedAt time.Time           `json:"updatedAt,omitzero"`
}

// Exists reports whether the restaurant is registered.
func (s *State) Exists() bool { return s.Version > 0 }

// Line asks for one menu item.
type Line struct {
	ItemID   string `json:"itemId"`
	Quantity int    `json:"quantity"`
}

// Price makes order items of the lines, with names and prices copied from the menu.
// The error is a *domain.Refusal. Lines that can never be ordered together are refused
// before those that can not be ordered now.
func (s *State) Price(lines []Line) (items []order.Item, currency string, err error) {
	for i, l := range lines {
		m, ok := s.Menu[l.ItemID]
		if !ok {
			return nil, "", domain.Refuse(CodeUnknownItem, "items[%d] is not on this restaurant's menu", i)
		}
		if currency == "" {
			currency = m.Price.Currency
		}
		if m.Price.Currency != currency {
			return nil, "", domain.Refuse(CodeCurrencyMismatch, "items[%d] is priced in another currency than items[0]", i)
		}
		items = append(items, order.Item{ItemID: l.ItemID, Name: m.Name, UnitPrice: m.Price.Amount, Quantity: l.Quantity})
	}
	if !s.Open {
		return nil, "", domain.Refuse(CodeClosed, "the restaurant is closed")
	}
	for i, l := range lines {
		if !s.Menu[l.ItemID].Available {
			return nil, "", domain.Refuse(CodeItemUnavailable, "items[%d] is not available now", i)
		}
	}
	return items, currency, nil
}
