package domain_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/rider"
)

// readables are what reads its JSON by hand.
var readables = []domain.JSONReadable{
	&domain.Ctx{}, &order.State{}, &order.OrderPlaced{}, &order.OrderPaid{}, &order.OrderAccepted{}, &order.OrderPreparing{},
	&order.OrderReadyForRider{}, &order.OrderOffered{}, &order.OfferDeclined{}, &order.OffersExpired{}, &order.RiderAssigned{},
	&order.OrderPickedUp{}, &order.OrderDelivered{}, &order.OrderCancelled{},
	&payment.State{}, &payment.PaymentRequested{}, &payment.PaymentSuccess{}, &payment.PaymentFailed{},
	&payment.RefundRequested{}, &payment.RefundSuccess{},
	&rider.State{}, &rider.RiderClaimed{}, &rider.RiderReleased{}, &rider.Position{},
}

// TestReadJSON holds what reads its JSON by hand against encoding/json. What is written
// of random values in every field is read by hand: a field that is forgotten, misspelt or
// in another place is a difference. The same text with random changes is read by hand
// only if the result is that of encoding/json.
func TestReadJSON(t *testing.T) {
	t.Parallel()
	for _, r := range readables {
		typ := reflect.TypeOf(r).Elem()
		t.Run(typ.String(), func(t *testing.T) {
			t.Parallel()
			rapid.Check(t, func(t *rapid.T) {
				v := reflect.New(typ)
				randomly(t, v.Elem())
				data, err := json.Marshal(v.Interface())
				if err != nil {
					t.Fatal(err)
				}
				if !readAsByEncodingJSON(t, typ, data) {
					t.Errorf("not read by hand: %s", data)
				}
				readAsByEncodingJSON(t, typ, changed(t, data))
			})
		})
	}
}

// readAsByEncodingJSON reads data as the type by hand, and reports whether it could. It
// fails if encoding/json reads something else, or if the result changes with the memory
// of data.
func readAsByEncodingJSON(t interface{ Errorf(string, ...any) }, typ reflect.Type, data []byte) bool {
	byHand, want := reflect.New(typ), reflect.New(typ)
	record := slices.Clone(data)
	read := domain.ReadJSON(record, byHand.Interface().(domain.JSONReadable))
	if !read {
		return false
	}
	clear(record)
	if err := json.Unmarshal(data, want.Interface()); err != nil {
		t.Errorf("%s\nis read by hand, and not by encoding/json: %v", data, err)
	} else if !reflect.DeepEqual(byHand.Interface(), want.Interface()) {
		t.Errorf("%s\nby hand:\n%#v\nencoding/json:\n%#v", data, byHand.Elem(), want.Elem())
	}
	return true
}

// changed returns data with a few random changes.
func changed(t *rapid.T, data []byte) []byte {
	data = slices.Clone(data)
	pieces := rapid.SampledFrom([]string{`"`, `\`, `{`, `}`, `[`, `]`, `,`, `:`, ` `, `0`, `1`, `-`, `.`, `e`, `Z`, `null`, `true`, `false`, `[]`, `{}`, `""`, `0.5`,
		`\u0041`, `\ud800`, "\x00", "\x1f", "\x80", "\xff", "é", "+05:30", `"orderId":"x",`, `"a":1,`, "99999999999999999999"})
	for range rapid.IntRange(1, 3).Draw(t, "changes") {
		from := rapid.IntRange(0, len(data)).Draw(t, "from")
		to := min(len(data), from+rapid.IntRange(0, 3).Draw(t, "gone"))
		data = slices.Replace(data, from, to, []byte(pieces.Draw(t, "piece"))...)
	}
	return data
}

// golden returns the golden files of events by their type.
func golden(t testing.TB) map[string][]byte {
	t.Helper()
	files := map[string][]byte{}
	for _, aggregate := range []string{"order", "payment", "rider"} {
		paths, err := filepath.Glob(aggregate + "/testdata/*.v1.json")
		if err != nil || len(paths) == 0 {
			t.Fatalf("no golden files of %s: %v", aggregate, err)
		}
		for _, p := range paths {
			data, err := os.ReadFile(p)
			if err != nil {
				t.Fatal(err)
			}
			name, _, _ := strings.Cut(filepath.Base(p), ".")
			files[name] = []byte(strings.TrimSuffix(string(data), "\n"))
		}
	}
	return files
}

// FuzzReadJSON: what is read by hand is what encoding/json reads, whatever the bytes, and
// what is not read by hand is decoded by encoding/json.
func FuzzReadJSON(f *testing.F) {
	for i, r := range readables {
		for _, data := range golden(f) {
			if domain.ReadJSON(data, reflect.New(reflect.TypeOf(r).Elem()).Interface().(domain.JSONReadable)) {
				f.Add(uint8(i), data)
			}
		}
		data, err := json.Marshal(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), data)
	}
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		readAsByEncodingJSON(t, reflect.TypeOf(readables[int(which)%len(readables)]).Elem(), data)
		var got, want order.OrderPlaced
		gotErr, wantErr := domain.DecodeJSON(data, &got), json.Unmarshal(data, &want)
		if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(gotErr, wantErr) {
			t.Errorf("%s\ndecoded:\n%#v, %v\nencoding/json:\n%#v, %v", data, got, gotErr, want, wantErr)
		}
	})
}

// TestDecodeJSONLeavesOtherFormsToEncodingJSON: what WriteJSON does not write means what
// encoding/json says. Some of these were never written; other programs may write them.
func TestDecodeJSONLeavesOtherFormsToEncodingJSON(t *testing.T) {
	t.Parallel()
	const place = `{"type":"Point","coordinates":[77.6,12.9]}`
	for _, data := range []string{
		``, `null`, `[]`, `{}`, `{"orderId":"o"`, `{"orderId":"o","restaurantId":"r"} `,
		`{"restaurantId":"r","orderId":"o","location":` + place + `,"round":1,"ctx":{}}`,
		`{"orderId":"o","restaurantId":"r","location":` + place + `,"round":1,"ctx":{},"new":[1]}`,
		`{"orderId":"o","restaurantId":"r","location":` + place + `,"round":1,"ctx":{}}{}`,
		`{"orderId":"o","orderId":"p","restaurantId":"r","location":` + place + `,"round":1,"ctx":{}}`,
		`{"ORDERID":"o","restaurantId":"r","location":` + place + `,"round":1,"ctx":{}}`,
		`{"orderId":null,"restaurantId":"r","location":null,"round":null,"ctx":null}`,
		`{"orderId":"\ud800","restaurantId":"\u0041\"` + "\xff" + `","location":` + place + `,"round":1,"ctx":{}}`,
		"{\"orderId\":\"o\n\",\"restaurantId\":\"r\",\"location\":" + place + `,"round":1,"ctx":{}}`,
		`{"orderId":"o","restaurantId":"r","location":` + place + `,"round":99999999999999999999,"ctx":{}}`,
		`{"orderId":"o","restaurantId":"r","location":` + place + `,"round":1.0,"ctx":{}}`,
		`{"orderId":"o","restaurantId":"r","location":` + place + `,"round":01,"ctx":{}}`,
		`{"orderId":"o","restaurantId":"r","location":{"type":"Point","coordinates":[77.6,12.9,3]},"round":1,"ctx":{}}`,
		`{"orderId":"o","restaurantId":"r","location":{"type":"Point","coordinates":[181,12.9]},"round":1,"ctx":{}}`,
		`{"orderId":"o","restaurantId":"r","location":{"type":"Point","coordinates":[77.6,1e999]},"round":1,"ctx":{}}`,
		`{"orderId":"o","restaurantId":"r","location":{"type":"Point","coordinates":[.5,12.9]},"round":1,"ctx":{}}`,
		`{"orderId":"o","restaurantId":"r","location":{"type":"Point","coordinates":[0x1p4,12.9]},"round":1,"ctx":{}}`,
	} {
		var got, want order.OrderReadyForRider
		gotErr, wantErr := domain.DecodeJSON([]byte(data), &got), json.Unmarshal([]byte(data), &want)
		if !reflect.DeepEqual(got, want) || !reflect.DeepEqual(gotErr, wantErr) {
			t.Errorf("%s\ndecoded:\n%#v, %v\nencoding/json:\n%#v, %v", data, got, gotErr, want, wantErr)
		}
	}
}

// BenchmarkDecodeJSON decodes the golden files of events, and states.
func BenchmarkDecodeJSON(b *testing.B) {
	files := golden(b)
	bench := func(name string, decode func() error) {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := decode(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	for _, eventType := range order.Types {
		bench(eventType, func() error { _, err := order.Decode(eventType, 1, files[eventType]); return err })
	}
	for _, eventType := range payment.Types {
		bench(eventType, func() error { _, err := payment.Decode(eventType, 1, files[eventType]); return err })
	}
	for _, eventType := range rider.Types {
		bench(eventType, func() error { _, err := rider.Decode(eventType, 1, files[eventType]); return err })
	}
	o := lived(b, order.Decode, order.Evolve, files, order.TypeOrderPlaced, order.TypeOrderPaid, order.TypeOrderAccepted,
		order.TypeOrderPreparing, order.TypeOrderReadyForRider, order.TypeOrderOffered, order.TypeRiderAssigned, order.TypeOrderPickedUp, order.TypeOrderDelivered)
	bench("state of an order", func() error { var s order.State; return domain.DecodeJSON(o, &s) })
	p := lived(b, payment.Decode, payment.Evolve, files, payment.TypePaymentRequested, payment.TypePaymentSuccess)
	bench("state of a payment", func() error { var s payment.State; return domain.DecodeJSON(p, &s) })
	r := lived(b, rider.Decode, rider.Evolve, files, rider.TypeRiderRegistered, rider.TypeRiderVerified, rider.TypeRiderClaimed)
	bench("state of a rider", func() error { var s rider.State; return domain.DecodeJSON(r, &s) })
}

// lived returns as JSON the state that the golden files of these types make.
func lived[E, S any](b *testing.B, decode func(string, int, []byte) (E, error), evolve func(S, E, time.Time) S, files map[string][]byte, types ...string) []byte {
	b.Helper()
	var s S
	for _, eventType := range types {
		e, err := decode(eventType, 1, files[eventType])
		if err != nil {
			b.Fatal(err)
		}
		s = evolve(s, e, time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC))
	}
	data, err := json.Marshal(&s)
	if err != nil {
		b.Fatal(err)
	}
	return data
}
