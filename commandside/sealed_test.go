package commandside

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/rider"
	"tomato/eventlog/subjectkeys/subjectkeystest"
	"tomato/httpapi"
)

// asked is an Executor that keeps what it is asked.
type asked struct{ requests []shard.Request }

func (a *asked) Execute(_ context.Context, r shard.Request) (shard.Result, error) {
	a.requests = append(a.requests, r)
	return shard.Result{Status: 201, Order: &order.State{Version: 1}, Rider: &rider.State{Version: 1}}, nil
}

// TestNothingPersonalReachesAShard: neither the command nor what its idempotency key is
// compared by has what is personal, and a repeat with the same body is the same.
func TestNothingPersonalReachesAShard(t *testing.T) {
	t.Parallel()
	const secret = "a secret of this test, 32 bytes."
	auth, err := httpapi.NewAuthenticator(httpapi.AuthConfig{Secrets: []string{secret}})
	if err != nil {
		t.Fatal(err)
	}
	defer auth.Close()
	shards := &asked{}
	s := &Side{Config: Config{CommandDeadline: time.Minute, PaymentTTL: time.Minute}, Commands: shards, Keys: &subjectkeystest.Keys{}}
	api := httpapi.New(httpapi.Options{Auth: auth})
	s.orderRoutes(api)
	s.riderRoutes(api)
	call := func(method, path, body string, actor domain.Actor) int {
		t.Helper()
		token, err := httpapi.MintToken(secret, actor, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		r := httptest.NewRequest(method, path, strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+token)
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Idempotency-Key", "k")
		w := httptest.NewRecorder()
		api.ServeHTTP(w, r)
		return w.Code
	}
	customer, una := domain.Actor{Sub: "c1", Role: domain.Customer}, domain.Actor{Sub: "una", Role: domain.Rider}
	const anOrder = "019b7c1e-8e3c-7b1a-9d55-0a1b2c3d4e5f"
	place := `{"restaurantId":"r1","items":[{"itemId":"dosa","quantity":2}],"deliverTo":{"location":{"type":"Point","coordinates":[77.123456,12.654321]},"address":"4 Church Street","instructions":"ring twice"}}`
	for range 2 {
		if status := call(http.MethodPost, "/v1/orders", place, customer); status != http.StatusCreated {
			t.Fatal(status)
		}
		if status := call(http.MethodPut, "/v1/riders/una", `{"name":"Una Rao"}`, una); status != http.StatusCreated {
			t.Fatal(status)
		}
		for path, actor := range map[string]domain.Actor{"cancel": customer, "drop": una} {
			if status := call(http.MethodPost, "/v1/orders/"+anOrder+"/"+path, `{"reason":"my neighbour Ottilie is ill"}`, actor); status != http.StatusCreated {
				t.Fatal(status)
			}
		}
	}
	for _, r := range shards.requests {
		command, err := json.Marshal(r.Command)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"Church", "ring twice", "77.123456", "12.654321", "Una Rao", "Ottilie"} {
			if all := string(command) + r.BodyHash; strings.Contains(all, word) || !strings.Contains(string(command), `"s1.`) || !strings.Contains(r.BodyHash, `"s1.`) {
				t.Errorf("%s reaches the shard: %s", word, all)
			}
		}
	}
	bodies := map[string]int{}
	for _, r := range shards.requests {
		bodies[r.Command.CommandName()+r.BodyHash]++
	}
	if n := len(shards.requests); n != 8 || len(bodies) != 4 {
		t.Errorf("%d requests; a repeat has another body: %s", n, fmt.Sprint(shards.requests))
	}
	// What a restaurant gives as a reason is no customer's text, and stays as it is.
	kitchen := domain.Actor{Sub: "staff1", Role: domain.Restaurant, RestaurantID: "r1"}
	if status := call(http.MethodPost, "/v1/orders/"+anOrder+"/cancel", `{"reason":"kitchen fire"}`, kitchen); status != http.StatusCreated {
		t.Fatal(status)
	}
	last := shards.requests[len(shards.requests)-1]
	if c, ok := last.Command.(order.Cancel); !ok || c.Reason != "kitchen fire" {
		t.Errorf("the restaurant's reason reaches the shard as %+v", last.Command)
	}
	// A rider makes no keys for others.
	if status := call(http.MethodPut, "/v1/riders/other", `{"name":"x"}`, una); status != http.StatusForbidden || len(shards.requests) != 9 {
		t.Errorf("another rider: %d", status)
	}
}
