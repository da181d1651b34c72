package servertest

import (
	"encoding/json"
	"fmt"
	"time"

	"tomato/commandside/gateway"
	"tomato/domain/order"
	"tomato/eventlog"
)

// What a test is given.

// Point returns a GeoJSON Point.
func Point(lng, lat float64) map[string]any {
	return map[string]any{"type": "Point", "coordinates": []float64{lng, lat}}
}

// Lng, Lat is where restaurants and riders of tests begin. Restaurants are far from one
// another, so that their riders do not meet. One degree of latitude is 111 km.
const Lng, Lat = 77.6, 12.9

// AddRestaurant registers an open restaurant with one item, m1, of 250.00 INR.
func (a *Installation) AddRestaurant(id string, lng, lat float64) {
	a.T.Helper()
	a.Must(Ops, "PUT /v1/restaurants/"+id, map[string]any{"name": "Kitchen " + id, "location": Point(lng, lat)})
	a.Must(Staff(id), "PUT /v1/restaurants/"+id+"/menu/m1", Item(25000, true))
	a.Must(Staff(id), "POST /v1/restaurants/"+id+"/open", nil)
}

// Item returns a menu item.
func Item(amount int64, available bool) map[string]any {
	return map[string]any{"name": "Thali", "price": map[string]any{"amount": amount, "currency": "INR"}, "available": available}
}

// AddRider registers a verified rider who is online at the place.
func (a *Installation) AddRider(id string, lng, lat float64) {
	a.T.Helper()
	a.Must(Ops, "PUT /v1/riders/"+id, RiderName(id))
	a.Must(Ops, "POST /v1/riders/"+id+"/verify", nil)
	a.Must(Rider(id), "PUT /v1/riders/"+id+"/location", map[string]any{"location": Point(lng, lat)})
	a.Must(Rider(id), "POST /v1/riders/"+id+"/online", nil)
}

// RiderName returns the body that registers a rider.
func RiderName(id string) map[string]any { return map[string]any{"name": "Rider " + id} }

// AddRiders registers n riders at one place, and returns their ids.
func (a *Installation) AddRiders(prefix string, n int, lng, lat float64) []string {
	a.T.Helper()
	ids := make([]string, n)
	for i := range ids {
		ids[i] = fmt.Sprint(prefix, i)
	}
	a.Each(n, 8, func(i int) { a.AddRider(ids[i], lng, lat) })
	return ids
}

// Basket returns the body that places an order of 500.00 INR.
func Basket(restaurantID string) map[string]any {
	return map[string]any{"restaurantId": restaurantID, "items": []any{map[string]any{"itemId": "m1", "quantity": 2}},
		"deliverTo": map[string]any{"location": Point(Lng, Lat), "address": "12 Market Road"}}
}

// Place returns the id of a new order of 500.00 INR.
func (a *Installation) Place(customerID, restaurantID string) string {
	a.T.Helper()
	return a.Must(Customer(customerID), "POST /v1/orders", Basket(restaurantID)).Str("orderId")
}

// OpenPayment returns the id of the order at the gateway.
func (a *Installation) OpenPayment(customerID, orderID string) string {
	a.T.Helper()
	return a.Must(Customer(customerID), "POST /v1/orders/"+orderID+"/payment", nil).Str("gatewayOrderId")
}

// Pay pays an order as the gateway does it, and returns when it is paid.
func (a *Installation) Pay(customerID, orderID string) (paymentID string) {
	a.T.Helper()
	gatewayOrder := a.OpenPayment(customerID, orderID)
	paymentID = a.Must(Customer(customerID), "POST /v1/simulated-gateway/orders/"+gatewayOrder+"/pay", map[string]any{"outcome": "captured"}).Str("paymentId")
	a.AwaitEvent(eventlog.Orders, orderID, order.TypeOrderPaid, 1)
	return paymentID
}

// Cook places and pays an order and brings it as far as preparing.
func (a *Installation) Cook(customerID, restaurantID string) string {
	a.T.Helper()
	id := a.Place(customerID, restaurantID)
	a.Pay(customerID, id)
	a.Must(Staff(restaurantID), "POST /v1/orders/"+id+"/accept-order", nil)
	a.Must(Staff(restaurantID), "POST /v1/orders/"+id+"/preparing", nil)
	return id
}

// ReadyOrder is Cook, and the order is ready for a rider.
func (a *Installation) ReadyOrder(customerID, restaurantID string) string {
	a.T.Helper()
	id := a.Cook(customerID, restaurantID)
	a.Must(Staff(restaurantID), "POST /v1/orders/"+id+"/ready", nil)
	return id
}

// Capture returns the body of a webhook about money. event is payment.captured,
// order.paid, payment.authorized or payment.failed.
func Capture(event, gatewayOrder, paymentID string, amount int64) []byte {
	status := map[string]string{gateway.EventPaymentAuthorized: "authorized", gateway.EventPaymentFailed: "failed"}[event]
	if status == "" {
		status = "captured"
	}
	payload := map[string]any{"payment": map[string]any{"entity": map[string]any{"id": paymentID, "entity": "payment", "amount": amount,
		"currency": "INR", "status": status, "order_id": gatewayOrder, "captured": status == "captured", "notes": []any{}}}}
	if event == gateway.EventOrderPaid {
		payload["order"] = map[string]any{"entity": map[string]any{"id": gatewayOrder, "entity": "order", "amount": amount, "amount_paid": amount,
			"currency": "INR", "status": "paid", "notes": []any{}}}
	}
	b, err := json.Marshal(map[string]any{"entity": "event", "account_id": "acc_e2e", "event": event, "contains": []string{"payment"},
		"payload": payload, "created_at": time.Now().Unix()})
	if err != nil {
		panic(err)
	}
	return b
}
