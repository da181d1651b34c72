package order_test

import (
	"strings"
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/domaintest"
	"tomato/domain/order"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// TestPlainPersonalFieldsAreRefused: builds before the sealing wrote addresses and names in
// plain text. A name was once taken for a sealed text that nobody can read.
func TestPlainPersonalFieldsAreRefused(t *testing.T) {
	t.Parallel()
	for data, eventType := range map[string]string{
		`{"orderId":"o","deliverTo":"4 Church Street","ctx":{}}`:             order.TypeOrderPlaced,
		`{"orderId":"o","deliverTo":{"address":"4 Church Street"},"ctx":{}}`: order.TypeOrderPlaced,
		`{"orderId":"o","deliverTo":"4 Church Street","ctx":{} }`:            order.TypeOrderPaid,
		`{"orderId":"o","riderId":"r","riderName":"Una","ctx":{}}`:           order.TypeRiderAssigned,
	} {
		if e, err := order.Decode(eventType, 1, []byte(data)); err == nil || strings.Contains(err.Error(), "Church") || strings.Contains(err.Error(), "Una") {
			t.Errorf("%s is %+v, %v", data, e, err)
		}
	}
}

func TestWire(t *testing.T) {
	t.Parallel()
	const id = "019b7c1e-8e3c-7b1a-9d55-0a1b2c3d4e5f"
	at := domain.Point{Lng: 77.5946, Lat: 12.9716}
	items := []order.Item{{ItemID: "dosa", Name: "Masala Dosa", UnitPrice: 15000, Quantity: 3}}
	pickUp := order.PickUp{Name: "Udupi Hut", Location: at, Address: "12 MG Road"}
	deliverTo := subjectkeystest.DeliverTo("cust-9", `{"location":{"type":"Point","coordinates":[77.6101,12.9352]},"address":"4 Church Street","instructions":"ring twice"}`)
	ctx := func(status order.Status) domain.Ctx {
		return domain.Ctx{CustomerID: "cust-9", RestaurantID: "res-17", Status: string(status)}
	}
	with := func(status order.Status) domain.Ctx { c := ctx(status); c.RiderID = "rider-5"; return c }
	domaintest.Golden[order.Event](t, order.Decode, order.Forms, order.Types,
		order.OrderPlaced{OrderID: id, CustomerID: "cust-9", RestaurantID: "res-17", Items: items, Amount: 45000, Currency: "INR",
			PickUp: pickUp, DeliverTo: deliverTo, ExternalReference: "till-3", PaymentDueAt: t0.Add(15 * time.Minute), Ctx: ctx(order.StatusPlaced)},
		order.OrderPaid{OrderID: id, PaymentID: "pay_Nx2", AcceptBy: t0.Add(10 * time.Minute),
			Items: items, Amount: 45000, Currency: "INR", PickUp: pickUp, DeliverTo: deliverTo, ExternalReference: "till-3",
			PlacedAt: t0.Add(-time.Minute), Ctx: ctx(order.StatusPlaced)},
		order.OrderExpired{OrderID: id, Ctx: ctx(order.StatusExpired)},
		order.OrderAccepted{OrderID: id, PrepMinutes: 20, ReadyAt: t0.Add(20 * time.Minute), Ctx: ctx(order.StatusAccepted)},
		order.OrderRejected{OrderID: id, Reason: "out of batter", By: domain.Restaurant, PaymentID: "pay_Nx2", Ctx: ctx(order.StatusRejected)},
		order.OrderPreparing{OrderID: id, Ctx: ctx(order.StatusPreparing)},
		order.OrderReadyForRider{OrderID: id, RestaurantID: "res-17", Location: at, Round: 1, Ctx: ctx(order.StatusReadyForRider)},
		order.OrderOffered{OrderID: id, Round: 1, Wave: 1, Riders: []order.OfferedRider{{RiderID: "rider-5", DistanceMeters: 420}, {RiderID: "rider-6", DistanceMeters: 1310}},
			Location: at, ExpiresAt: t0.Add(30 * time.Second), Ctx: ctx(order.StatusReadyForRider)},
		order.OfferDeclined{OrderID: id, RiderID: "rider-6", Round: 1, Wave: 1, Location: at, Ctx: ctx(order.StatusReadyForRider)},
		order.OffersExpired{OrderID: id, Round: 1, Wave: 1, Riders: []string{"rider-5"}, Location: at, Ctx: ctx(order.StatusReadyForRider)},
		order.RiderAssigned{OrderID: id, RiderID: "rider-5", RiderName: subjectkeystest.Name("rider-5", "Una Rao"), ClaimID: 4, Round: 1, Wave: 2, Riders: []string{"rider-6"}, Ctx: with(order.StatusRiderAssigned)},
		order.RiderUnassigned{OrderID: id, RiderID: "rider-5", ClaimID: 4, Reason: "flat tyre", By: domain.Rider, Round: 2, Location: at, Ctx: with(order.StatusReadyForRider)},
		order.DispatchExhausted{OrderID: id, Round: 1, Waves: 3, Ctx: ctx(order.StatusReadyForRider)},
		order.DispatchRequested{OrderID: id, Round: 2, Location: at, Ctx: ctx(order.StatusReadyForRider)},
		order.OrderPickedUp{OrderID: id, RiderID: "rider-5", Ctx: with(order.StatusPickedUp)},
		order.OrderDelivered{OrderID: id, RiderID: "rider-5", ClaimID: 4, Ctx: with(order.StatusDelivered)},
		order.OrderCancelled{OrderID: id, Reason: "kitchen fire", By: domain.Restaurant, PaymentID: "pay_Nx2", RiderID: "rider-5", ClaimID: 4, Riders: []string{}, Ctx: with(order.StatusCancelled)},
	)
}
