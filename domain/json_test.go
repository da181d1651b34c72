package domain_test

import (
	"bytes"
	"encoding/json"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/rider"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// TestJSON holds what writes its JSON by hand against encoding/json, with
// random values in every field: a field that is forgotten, misspelt or in
// another place is a difference.
func TestJSON(t *testing.T) {
	t.Parallel()
	for _, w := range []domain.JSONWriter{
		&domain.Point{}, &domain.Ctx{},
		&order.DeliverTo{}, &order.View{}, &order.State{}, &order.OrderPlaced{}, &order.OrderPaid{}, &order.OrderAccepted{}, &order.OrderPreparing{}, &order.OrderReadyForRider{},
		&order.OrderOffered{}, &order.OfferDeclined{}, &order.OffersExpired{}, &order.RiderAssigned{}, &order.OrderPickedUp{}, &order.OrderDelivered{}, &order.OrderCancelled{},
		&payment.PaymentRequested{}, &payment.PaymentSuccess{}, &payment.PaymentFailed{}, &payment.RefundRequested{}, &payment.RefundSuccess{}, &payment.State{},
		&rider.RiderClaimed{}, &rider.RiderReleased{}, &rider.State{},
	} {
		typ := reflect.TypeOf(w).Elem()
		t.Run(typ.String(), func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				v := reflect.New(typ)
				randomly(t, v.Elem())
				want, err := json.Marshal(v.Interface())
				if err != nil {
					t.Fatal(err)
				}
				if got := domain.EncodeJSON(v.Interface().(domain.JSONWriter)); !bytes.Equal(got, want) {
					t.Errorf("by hand:\n%s\nencoding/json:\n%s", got, want)
				}
				if got := domain.AppendEncoded([]byte("before "), v.Interface().(domain.JSONWriter)); string(got) != "before "+string(want) {
					t.Errorf("appended:\n%s\nencoding/json:\n%s", got, want)
				}
				var plain bytes.Buffer
				e := json.NewEncoder(&plain)
				e.SetEscapeHTML(false)
				if err := e.Encode(v.Interface()); err != nil {
					t.Fatal(err)
				}
				if got := domain.AppendJSON([]byte("before "), v.Interface().(domain.JSONWriter)); string(got)+"\n" != "before "+plain.String() {
					t.Errorf("by hand:\n%s\nencoding/json:\n%s", got, &plain)
				}
			})
		})
	}
}

// randomly fills v.
func randomly(t *rapid.T, v reflect.Value) {
	some := func() bool { return rapid.Bool().Draw(t, "some") }
	switch {
	case v.Type() == reflect.TypeFor[time.Time]():
		if some() {
			ms := rapid.Int64Range(time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC).UnixMilli(), time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC).UnixMilli())
			v.Set(reflect.ValueOf(domain.Time(time.UnixMilli(ms.Draw(t, "time")))))
		}
		return
	case v.Type() == reflect.TypeFor[domain.Point]():
		v.Set(reflect.ValueOf(domain.Point{Lng: rapid.Float64Range(-180, 180).Draw(t, "lng"), Lat: rapid.Float64Range(-90, 90).Draw(t, "lat")}))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			randomly(t, v.Field(i))
		}
	case reflect.Pointer:
		if some() {
			v.Set(reflect.New(v.Type().Elem()))
			randomly(t, v.Elem())
		}
	case reflect.Slice:
		if some() {
			v.Set(reflect.MakeSlice(v.Type(), rapid.IntRange(0, 3).Draw(t, "length"), 3))
			for i := range v.Len() {
				randomly(t, v.Index(i))
			}
		}
	case reflect.String:
		v.SetString(rapid.OneOf(rapid.StringMatching(`[A-Za-z0-9 ]{0,12}`), rapid.String(), rapid.StringOf(rapid.RuneFrom([]rune("a\"\\<>&\n\x00\x7fé\u2028\u2029\U0001f345"))),
			rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })).Draw(t, "text"))
	case reflect.Int, reflect.Int64:
		v.SetInt(rapid.Int64().Draw(t, "number"))
	case reflect.Bool:
		v.SetBool(some())
	default:
		t.Fatalf("no random %s", v.Type())
	}
}

func BenchmarkEncodeJSON(b *testing.B) {
	at := domain.Time(time.Now())
	ctx := domain.Ctx{CustomerID: "customer-17", RestaurantID: "restaurant-3", Status: "placed"}
	const id = "019b7c1e-8e3c-7b1a-9d55-0a1b2c3d4e5f"
	for _, e := range []interface {
		domain.Event
		domain.JSONWriter
	}{
		order.OrderPlaced{OrderID: id, CustomerID: "customer-17", RestaurantID: "restaurant-3",
			Items:  []order.Item{{ItemID: "dosa", Name: "Masala Dosa", UnitPrice: 12000, Quantity: 2}, {ItemID: "lassi", Name: "Sweet Lassi", UnitPrice: 6000, Quantity: 1}},
			Amount: 30000, Currency: "INR", PickUp: order.PickUp{Name: "Dosa Corner", Location: domain.Point{Lng: 77.59, Lat: 12.97}},
			DeliverTo: subjectkeystest.DeliverTo("customer-17", `{"location":{"type":"Point","coordinates":[77.6,12.97]},"address":"14 Church Street, Bengaluru"}`), PaymentDueAt: at, Ctx: ctx},
		order.OrderAccepted{OrderID: id, PrepMinutes: 20, ReadyAt: at, Ctx: ctx},
	} {
		b.Run(e.EventType()+"/reflection", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := json.Marshal(e); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(e.EventType()+"/by-hand", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				domain.EncodeJSON(e)
			}
		})
	}
}
