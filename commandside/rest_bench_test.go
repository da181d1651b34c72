package commandside

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"testing"
	"time"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog/subjectkeys/subjectkeystest"
	"tomato/httpapi"
)

// answers is an Executor that always returns the same result.
type answers struct{ res shard.Result }

func (a answers) Execute(context.Context, shard.Request) (shard.Result, error) { return a.res, nil }

// BenchmarkHTTPCommand measures what one command costs between net/http and the shards:
// checking the token, reading and checking the request, and writing the answer.
func BenchmarkHTTPCommand(b *testing.B) {
	const secret = "a secret of this benchmark's alone"
	auth, err := httpapi.NewAuthenticator(httpapi.AuthConfig{Secrets: []string{secret}})
	if err != nil {
		b.Fatal(err)
	}
	defer auth.Close()
	at := time.Date(2026, 3, 1, 12, 30, 0, 123e6, time.UTC)
	o := &order.State{ID: "019b7c1e-8e3c-7b1a-9d55-0a1b2c3d4e5f", Version: 3, Status: order.StatusAccepted, CustomerID: "c1", RestaurantID: "r1",
		Items:  []order.Item{{ItemID: "dosa", Name: "Masala Dosa", UnitPrice: 12000, Quantity: 2}, {ItemID: "lassi", Name: "Sweet Lassi", UnitPrice: 6000, Quantity: 1}},
		Amount: 30000, Currency: "INR", PickUp: order.PickUp{Name: "Dosa Corner", Location: domain.Point{Lng: 77.59, Lat: 12.97}},
		DeliverTo: subjectkeystest.DeliverTo("c1", `{"location":{"type":"Point","coordinates":[77.6,12.97]},"address":"14 Church Street, Bengaluru"}`),
		PaymentID: "pay_1", ReadyAt: at.Add(20 * time.Minute), CreatedAt: at, UpdatedAt: at}
	s := &Side{Config: Config{CommandDeadline: 5 * time.Second, PaymentTTL: time.Minute}, Keys: &subjectkeystest.Keys{},
		Commands: answers{shard.Result{Status: 200, Order: o}}}
	api := httpapi.New(httpapi.Options{Auth: auth})
	s.orderRoutes(api)
	customer := domain.Actor{Sub: "c1", Role: domain.Customer}
	kitchen := domain.Actor{Sub: "staff", Role: domain.Restaurant, RestaurantID: "r1"}
	for _, c := range []struct {
		name, path, body string
		actor            domain.Actor
	}{
		{"place", "/v1/orders", `{"restaurantId":"r1","items":[{"itemId":"dosa","quantity":2},{"itemId":"lassi","quantity":1}],` +
			`"deliverTo":{"location":{"type":"Point","coordinates":[77.6,12.97]},"address":"14 Church Street, Bengaluru"}}`, customer},
		{"accept-order", "/v1/orders/" + o.ID + "/accept-order", `{"prepMinutes":20}`, kitchen},
		{"preparing", "/v1/orders/" + o.ID + "/preparing", "", kitchen},
		{"cancel", "/v1/orders/" + o.ID + "/cancel", `{"reason":"changed my mind"}`, customer},
	} {
		b.Run(c.name, func(b *testing.B) {
			token, err := httpapi.MintToken(secret, c.actor, time.Hour)
			if err != nil {
				b.Fatal(err)
			}
			body := bytes.NewReader([]byte(c.body))
			r, err := http.NewRequest("POST", c.path, io.NopCloser(body))
			if err != nil {
				b.Fatal(err)
			}
			r.ContentLength = int64(len(c.body))
			r.Header.Set("Authorization", "Bearer "+token)
			r.Header.Set("Content-Type", "application/json")
			w := &sink{header: http.Header{}}
			b.ReportAllocs()
			for b.Loop() {
				body.Reset([]byte(c.body))
				clear(w.header)
				api.ServeHTTP(w, r)
				if w.status > 299 {
					b.Fatal(w.status)
				}
			}
		})
	}
}

// sink is a ResponseWriter that keeps only the status.
type sink struct {
	header http.Header
	status int
}

func (s *sink) Header() http.Header             { return s.header }
func (s *sink) WriteHeader(status int)          { s.status = status }
func (s *sink) Write(b []byte) (int, error)     { return len(b), nil }
func (s *sink) SetReadDeadline(time.Time) error { return nil }
