package simulate

import (
	"encoding/json"
	"time"

	"tomato/domain"
)

// orderView is an order in the answers of queries and order commands.
type orderView struct {
	OrderID       string `json:"orderId"`
	Version       int    `json:"version"`
	Status        string `json:"status"`
	PaymentStatus string `json:"paymentStatus"`
	CustomerID    string `json:"customerId"`
	RestaurantID  string `json:"restaurantId"`
	RiderID       string `json:"riderId"`
	Amount        int64  `json:"amount"`
	Currency      string `json:"currency"`
	PickUp        struct {
		Location domain.Point `json:"location"`
	} `json:"pickUp"`
	PaymentDueAt time.Time `json:"paymentDueAt"`
	By           string    `json:"by"`
	Reason       string    `json:"reason"`
	External     string    `json:"externalReference"`
}

// eventView is one event in an order's history.
type eventView struct {
	Type      string          `json:"type"`
	Version   int             `json:"version"`
	Timestamp time.Time       `json:"timestamp"`
	Data      json.RawMessage `json:"data"`
}

// eventData is what the judge reads of an event's data.
type eventData struct {
	RiderID   string          `json:"riderId"`
	PaymentID string          `json:"paymentId"`
	Riders    json.RawMessage `json:"riders"` // objects in ORDER_OFFERED, ids elsewhere
	Ctx       domain.Ctx      `json:"ctx"`
}

// offeredRider is one rider in the data of ORDER_OFFERED.
type offeredRider struct {
	RiderID string `json:"riderId"`
}

// paymentView is an order's payment, with every payment at the gateway and every
// refund.
type paymentView struct {
	OrderID  string `json:"orderId"`
	State    string `json:"state"`
	Amount   int64  `json:"amount"`
	Payments []struct {
		PaymentID     string `json:"paymentId"`
		Amount        int64  `json:"amount"`
		State         string `json:"state"`
		GatewayStatus string `json:"gatewayStatus"`
	} `json:"payments"`
	Refunds []struct {
		RefundID  string `json:"refundId"`
		PaymentID string `json:"paymentId"`
		Amount    int64  `json:"amount"`
		Status    string `json:"status"`
	} `json:"refunds"`
}

// queried is what Tomato's queries say about one order.
type queried struct {
	order   orderView
	events  []eventView
	payment *paymentView // nil when no payment was requested
}
