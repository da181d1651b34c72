package restaurant

import "tomato/domain"

// The refusal codes of a restaurant, and of an order that is placed at one.
const (
	CodeClosed           domain.Code = "restaurant_closed"
	CodeItemUnavailable  domain.Code = "item_unavailable"
	CodeUnknown          domain.Code = "unknown_restaurant"
	CodeUnknownItem      domain.Code = "unknown_item"
	CodeCurrencyMismatch domain.Code = "currency_mismatch"
	CodeMenuFull         domain.Code = "menu_full"
)
