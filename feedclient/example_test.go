package feedclient_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"

	"github.com/coder/websocket"

	"tomato/feedclient"
)

// A screen that shows one order. It loads the order when it is told to, and follows it
// afterwards.
func Example() {
	server := httptest.NewServer(http.HandlerFunc(exampleFeed)) // stands in for Tomato
	defer server.Close()
	token := func(context.Context) (string, error) { return "a token of the customer", nil }
	client, err := feedclient.New(feedclient.Options{URLs: []string{server.URL}, Token: token, Rooms: []string{"order:o1"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	err = client.Run(ctx, func(_ context.Context, m feedclient.Message) error {
		if m.Event == feedclient.Reset {
			fmt.Println("load the order: GET /v1/orders/o1")
			return nil
		}
		data, err := m.Data()
		if err != nil {
			return err
		}
		switch data := data.(type) {
		case *feedclient.OrderChange:
			fmt.Println("status", data.Status)
			if data.Status == "delivered" {
				stop()
			}
		case *feedclient.RiderLocation:
			fmt.Println("rider at", data.Location.Lng, data.Location.Lat)
		}
		return nil
	})
	fmt.Println(errors.Is(err, context.Canceled))
	// Output:
	// load the order: GET /v1/orders/o1
	// rider at 77.5 12.9
	// status delivered
	// true
}

func exampleFeed(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	for _, m := range []string{
		`{"event":"rider:location","room":"order:o1","payload":{"riderId":"k1","location":{"type":"Point","coordinates":[77.5,12.9]},"recordedAt":"2026-01-02T03:04:05Z"},"timestamp":"2026-01-02T03:04:05Z","cursor":"a"}`,
		`{"event":"order:update","room":"order:o1","payload":{"orderId":"o1","status":"delivered","version":9},"timestamp":"2026-01-02T03:04:06Z","cursor":"b"}`,
	} {
		if conn.Write(r.Context(), websocket.MessageText, []byte(m)) != nil {
			return
		}
	}
	<-conn.CloseRead(r.Context()).Done()
}
