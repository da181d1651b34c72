package servertest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"tomato/commandside/gateway"
	"tomato/domain"
	"tomato/eventlog"
	"tomato/httpapi"
)

// Answer is what a request came to.
type Answer struct {
	t       testing.TB
	Request string
	Status  int // 0: none came
	Header  http.Header
	Body    []byte
	Err     error

	installation *Installation
	topic        string // of the aggregate that the request names, "" for none
	id           string
	before       int // events it had
}

// Token returns a token of the actor, which servers under test take.
func Token(t testing.TB, who domain.Actor) string {
	t.Helper()
	token, err := httpapi.MintToken(JWTSecret, who, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// Do sends one request. call is the method and the path, such as "GET /readyz". A body
// of type string or []byte is sent as it is, any other as JSON. header has pairs of
// name and value; "" leaves a header out. Without a role, who sends no token. The
// error is in the answer.
func (a *Installation) Do(who domain.Actor, call string, body any, header ...string) Answer {
	x := Answer{t: a.T, installation: a, Request: string(who.Role) + " " + who.Sub + ": " + call}
	method, path, _ := strings.Cut(call, " ")
	var r io.Reader
	if body != nil {
		switch b := body.(type) {
		case []byte:
			r = bytes.NewReader(b)
		case string:
			r = strings.NewReader(b)
		default:
			j, err := json.Marshal(b)
			if err != nil {
				x.Err = err
				return x
			}
			r = bytes.NewReader(j)
		}
	}
	req, err := http.NewRequestWithContext(a.T.Context(), method, a.URL+path, r)
	if err != nil {
		x.Err = err
		return x
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if who.Role != "" {
		req.Header.Set("Authorization", "Bearer "+Token(a.T, who))
	}
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
		if header[i+1] == "" {
			req.Header.Del(header[i])
		}
	}
	resp, err := a.Client.Do(req)
	if err != nil {
		x.Err = err
		return x
	}
	defer resp.Body.Close()
	x.Body, x.Err = io.ReadAll(resp.Body)
	if x.Err == nil {
		x.Status, x.Header = resp.StatusCode, resp.Header
	}
	return x
}

// Must is Do for what has to succeed: it is given, not tested.
func (a *Installation) Must(who domain.Actor, call string, body any, header ...string) Answer {
	a.T.Helper()
	x := a.Do(who, call, body, header...)
	if x.Err != nil || x.Status >= 300 {
		a.T.Fatal(x.Fault())
	}
	return x
}

// When sends a command; Then says what it must come to.
func (a *Installation) When(who domain.Actor, call string, body any, header ...string) Answer {
	a.T.Helper()
	topic, id := AggregateOf(call)
	before := len(a.History(topic, id))
	x := a.Do(who, call, body, header...)
	x.topic, x.id, x.before = topic, id, before
	return x
}

// AggregateOf reads the aggregate from a request's method and path. A new order has no
// id yet.
func AggregateOf(call string) (topic, id string) {
	_, path, _ := strings.Cut(call, " ")
	parts := strings.Split(strings.TrimPrefix(path, "/v1/"), "/")
	switch parts[0] {
	case eventlog.Orders, eventlog.Riders, eventlog.Restaurants, eventlog.Payments:
		if len(parts) > 1 {
			id = parts[1]
		}
		if len(parts) > 2 && parts[2] == "payment" {
			return eventlog.Payments, id
		}
		return parts[0], id
	}
	return "", ""
}

// Then fails the test unless the answer has the status, and the aggregate of the
// request has these new events of that request, in this order, and no others. What
// policies did because of the request is not among them.
func (x Answer) Then(status int, events ...string) Answer {
	x.t.Helper()
	if x.Err != nil || x.Status != status {
		x.t.Fatalf("%v; want %d", x.Fault(), status)
	}
	if x.id == "" && x.topic == eventlog.Orders {
		x.id = x.Str("orderId")
	}
	if x.topic == "" || x.id == "" {
		return x
	}
	var appended []string
	for _, e := range x.installation.History(x.topic, x.id)[x.before:] {
		// The claims policy may be faster than the request whose step it repeats.
		if e.CausationID == "" || slices.Contains(events, e.Type) {
			appended = append(appended, e.Type)
		}
	}
	if !slices.Equal(appended, events) {
		x.t.Fatalf("%s appended %v, want %v", x.Request, appended, events)
	}
	return x
}

// Code returns the code of a problem.
func (x Answer) Code() string { return x.Str("code") }

// ThenRefused is Then for a refusal with one of the codes: nothing is appended.
func (x Answer) ThenRefused(status int, codes ...string) Answer {
	x.t.Helper()
	x.Then(status)
	if !slices.Contains(codes, x.Code()) {
		x.t.Fatalf("%v; want code %v", x.Fault(), codes)
	}
	return x
}

// Fault returns the answer as an error that names the request.
func (x Answer) Fault() error {
	if x.Err != nil {
		return fmt.Errorf("%s: %w", x.Request, x.Err)
	}
	return fmt.Errorf("%s: %d %s", x.Request, x.Status, bytes.TrimSpace(x.Body))
}

// Get finds a value in the body by a path such as items.0.orderId; nil: absent.
func (x Answer) Get(path string) any {
	var v any
	if json.Unmarshal(x.Body, &v) != nil {
		return nil
	}
	return Dig(v, path)
}

// Dig finds a value in what was read from JSON by a path such as items.0.orderId;
// nil: absent.
func Dig(v any, path string) any {
	for _, step := range strings.Split(path, ".") {
		switch at := v.(type) {
		case map[string]any:
			v = at[step]
		case []any:
			i, err := strconv.Atoi(step)
			if err != nil || i >= len(at) {
				return nil
			}
			v = at[i]
		default:
			return nil
		}
	}
	return v
}

// Str is Get for a text; "": absent.
func (x Answer) Str(path string) string {
	s, _ := x.Get(path).(string)
	return s
}

// Want compares fields of the answer with values: pairs of path and text.
func (x Answer) Want(pairs ...string) Answer {
	x.t.Helper()
	for i := 0; i+1 < len(pairs); i += 2 {
		got := ""
		if v := x.Get(pairs[i]); v != nil {
			got = fmt.Sprint(v)
		}
		if got != pairs[i+1] {
			x.t.Errorf("%s: %s is %q, want %q in %s", x.Request, pairs[i], got, pairs[i+1], x.Body)
		}
	}
	return x
}

// ETag returns the header ETag.
func (x Answer) ETag() string { return x.Header.Get("ETag") }

// Token returns the consistency token.
func (x Answer) Token() string { return x.Header.Get("Consistency-Token") }

// Webhook sends a webhook with a valid signature.
func (a *Installation) Webhook(body []byte) Answer {
	return a.Do(domain.Actor{}, "POST /v1/webhooks/razorpay", body, gateway.SignatureHeader, gateway.Sign(WebhookSecret, body))
}
