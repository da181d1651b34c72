package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
)

const secret = "a secret for tests"

type placeRequest struct {
	Key   IdempotencyKey `header:"Idempotency-Key"`
	Match IfMatch        `header:"If-Match"`
	Body  struct {
		RestaurantID ID `json:"restaurantId"`
		Items        []struct {
			ItemID   string `json:"itemId" pattern:"^[A-Za-z0-9_-]{1,64}$"`
			Quantity int    `json:"quantity" minimum:"1" maximum:"100"`
		} `json:"items" minItems:"1" maxItems:"100"`
		DeliverTo struct {
			Location     domain.Point `json:"location"`
			Address      Text         `json:"address"`
			Instructions Text         `json:"instructions,omitempty"`
		} `json:"deliverTo"`
		At   *time.Time `json:"at,omitempty"`
		Free any        `json:"free,omitempty"`
		Big  int64      `json:"big,omitempty"`
	}
	RawBody []byte
}

type placeResponse struct {
	Status int
	ETag   string `header:"ETag"`
	Token  string `header:"Consistency-Token"`
	Body   struct {
		Address  string         `json:"address"`
		Location domain.Point   `json:"location"`
		Sub      string         `json:"sub"`
		Key      IdempotencyKey `json:"key,omitempty"`
		Raw      int            `json:"raw"`
	}
}

type listRequest struct {
	ID     ID        `path:"id"`
	Limit  int       `query:"limit" minimum:"1" maximum:"200" default:"50"`
	Status []string  `query:"status" enum:"placed,accepted"`
	Open   *bool     `query:"open"`
	Lat    float64   `query:"lat" minimum:"-90" maximum:"90"`
	Since  time.Time `query:"since"`
}

type listResponse struct {
	Body struct {
		ID     ID       `json:"id"`
		Limit  int      `json:"limit"`
		Status []string `json:"status,omitempty"`
		Open   *bool    `json:"open,omitempty"`
	}
}

func testAPI(t *testing.T, log io.Writer) *API {
	t.Helper()
	auth, err := NewAuthenticator(AuthConfig{Secrets: []string{secret}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(auth.Close)
	a := New(Options{Auth: auth, Log: slog.New(slog.NewTextHandler(log, nil)), Registry: prometheus.NewRegistry(),
		AllowedOrigins: []string{"https://app.example"}, Title: "Test", Version: "1"})
	everyone := []domain.Role{domain.Customer, domain.Ops}
	Register(a, huma.Operation{OperationID: "place", Method: "POST", Path: "/v1/orders", DefaultStatus: 201, Errors: []int{409}}, everyone,
		func(ctx context.Context, in *placeRequest) (*placeResponse, error) {
			out := &placeResponse{ETag: ETag(1)}
			out.Body.Address = string(in.Body.DeliverTo.Address)
			out.Body.Location = in.Body.DeliverTo.Location
			out.Body.Sub = Actor(ctx).Sub
			out.Body.Key = in.Key
			out.Body.Raw = len(in.RawBody)
			return out, in.Match.Check(1)
		})
	Register(a, huma.Operation{OperationID: "list", Method: "GET", Path: "/v1/things/{id}"}, nil,
		func(_ context.Context, in *listRequest) (*listResponse, error) {
			out := &listResponse{}
			out.Body.ID, out.Body.Limit, out.Body.Status, out.Body.Open = in.ID, in.Limit, in.Status, in.Open
			return out, nil
		})
	Register(a, huma.Operation{OperationID: "verify", Method: "POST", Path: "/v1/things/{id}/verify"}, []domain.Role{domain.Ops},
		func(context.Context, *struct {
			ID string `path:"id"`
		}) (*struct{}, error) {
			return nil, nil
		})
	Register(a, huma.Operation{OperationID: "prepare", Method: "POST", Path: "/v1/things/{id}/prepare"}, nil,
		func(_ context.Context, in *struct {
			Body struct {
				PrepMinutes int `json:"prepMinutes,omitempty" minimum:"1" maximum:"240"`
			}
		}) (*struct{ Body int }, error) {
			return &struct{ Body int }{in.Body.PrepMinutes}, nil
		})
	Register(a, huma.Operation{OperationID: "hook", Method: "POST", Path: "/v1/hook"}, nil,
		func(_ context.Context, in *struct{ RawBody []byte }) (*struct{ Body int }, error) {
			return &struct{ Body int }{len(in.RawBody)}, nil
		})
	Register(a, huma.Operation{OperationID: "fail", Method: "GET", Path: "/fail/{how}"}, nil,
		func(_ context.Context, in *struct {
			How string `path:"how"`
		}) (*struct{}, error) {
			switch in.How {
			case "panic":
				panic("the secret is xyzzy")
			case "refused":
				r := domain.Refuse(domain.InvalidTransition, "no")
				r.CurrentStatus = "placed"
				return nil, r
			case "missing":
				return nil, FromError("order", domain.Refuse(domain.NotFound, "no such order"))
			case "late":
				return nil, context.DeadlineExceeded
			case "busy":
				return nil, Unavailable("unavailable", "moving", 1500*time.Millisecond)
			}
			return nil, errors.New("the secret is xyzzy")
		})
	return a
}

func mint(t *testing.T, actor domain.Actor) string {
	t.Helper()
	s, err := MintToken(secret, actor, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const goodOrder = `{"restaurantId":"r1","items":[{"itemId":"i1","quantity":2}],"deliverTo":{"location":{"type":"Point","coordinates":[77.6,12.9,900]},"address":"  12 Main Street <A&B> "}}`

type call struct {
	method, path, body string
	header             map[string]string
	chunked            bool
}

func do(t *testing.T, a http.Handler, c call) (*http.Response, Problem, string) {
	t.Helper()
	var body io.Reader
	if c.body != "" {
		body = strings.NewReader(c.body)
		if c.chunked {
			body = io.MultiReader(body)
		}
	}
	r := httptest.NewRequest(c.method, c.path, body)
	for k, v := range c.header {
		r.Header.Set(k, v)
	}
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	res := w.Result()
	b, _ := io.ReadAll(res.Body)
	var p Problem
	if res.StatusCode >= 400 {
		if ct := res.Header.Get("Content-Type"); ct != "application/problem+json" && c.method != "HEAD" {
			t.Errorf("content type of an error: %q", ct)
		}
		if err := json.Unmarshal(b, &p); err != nil {
			t.Errorf("an error that is no problem: %v: %s", err, b)
		}
		if p.Status != res.StatusCode || p.Title == "" || p.Type != "/problems/"+strings.ReplaceAll(p.Code, "_", "-") {
			t.Errorf("problem: %+v", p)
		}
	}
	return res, p, string(b)
}

func TestFaults(t *testing.T) {
	t.Parallel()
	a := testAPI(t, io.Discard)
	bearer := "Bearer " + mint(t, domain.Actor{Sub: "c1", Role: domain.Customer})
	order := func(old, new string) string {
		s := strings.Replace(goodOrder, old, new, 1)
		if s == goodOrder {
			t.Fatalf("%q is not in the order", old)
		}
		return s
	}
	post := func(body string, kv ...string) call {
		h := map[string]string{"Authorization": bearer, "Content-Type": "application/json"}
		for i := 0; i < len(kv); i += 2 {
			h[kv[i]] = kv[i+1]
		}
		return call{method: "POST", path: "/v1/orders", body: body, header: h}
	}
	get := func(path string) call { return call{method: "GET", path: path} }
	const point = `{"type":"Point","coordinates":[77.6,12.9,900]}`
	at := func(locations ...string) []string { return locations }
	mib := strings.Repeat(" ", maxBodyBytes-len(goodOrder))

	for name, c := range map[string]struct {
		call
		status int
		code   string
		at     []string
	}{
		"good":                       {post(goodOrder), 201, "", nil},
		"charset":                    {post(goodOrder, "Content-Type", "application/json; charset=UTF-8"), 201, "", nil},
		"duplicate names":            {post(order(`"restaurantId":"r1"`, `"restaurantId":"r0","restaurantId":"r1"`)), 201, "", nil},
		"duplicate, first is broken": {post(order(`"restaurantId":"r1"`, `"restaurantId":7,"restaurantId":"r1"`)), 422, "validation_failed", at("body")},
		"other charset":              {post(goodOrder, "Content-Type", "application/json; charset=latin1"), 415, "unsupported_media_type", nil},
		"other type":                 {post(goodOrder, "Content-Type", "text/plain"), 415, "unsupported_media_type", nil},
		"no type":                    {post(goodOrder, "Content-Type", ""), 415, "unsupported_media_type", nil},
		"compressed":                 {post(goodOrder, "Content-Encoding", "gzip"), 415, "unsupported_media_type", nil},
		"malformed":                  {post(`{"restaurantId":`), 400, "malformed_json", nil},
		"trailing garbage":           {post(goodOrder + "x"), 400, "malformed_json", nil},
		"two values":                 {post(goodOrder + goodOrder), 400, "malformed_json", nil},
		"not UTF-8":                  {post(order("r1", "r\xff")), 400, "malformed_json", nil},
		"only white space":           {post("  "), 400, "malformed_json", nil},
		"400 before 422":             {post(`{`, "If-Match", "x y"), 400, "malformed_json", nil},
		"1 MiB":                      {post(goodOrder + mib), 201, "", nil},
		"over 1 MiB":                 {post(goodOrder + mib + " "), 413, "body_too_large", nil},
		"null":                       {post(`null`), 422, "validation_failed", at("body")},
		"array":                      {post(`[]`), 422, "validation_failed", at("body")},
		"empty":                      {post(``), 422, "validation_failed", at("body.deliverTo", "body.items", "body.restaurantId")},
		"empty object":               {post(`{}`), 422, "validation_failed", at("body.deliverTo", "body.items", "body.restaurantId")},
		"unknown field":              {post(order(`"restaurantId"`, `"x.y[0]":1,"restaurantId"`)), 422, "validation_failed", at("body.x.y[0]")},
		"other case":                 {post(order(`"restaurantId"`, `"RestaurantId"`)), 422, "validation_failed", at("body.RestaurantId", "body.restaurantId")},
		"null for optional":          {post(order(`"address"`, `"instructions":null,"address"`)), 422, "validation_failed", at("body.deliverTo.instructions")},
		"wrong types":                {post(`{"restaurantId":1,"items":[{"itemId":true,"quantity":"2"}],"deliverTo":[]}`), 422, "validation_failed", at("body.deliverTo", "body.items[0].itemId", "body.items[0].quantity", "body.restaurantId")},
		"quantity":                   {post(order(`"quantity":2`, `"quantity":0`)), 422, "validation_failed", at("body.items[0].quantity")},
		"whole number":               {post(order(`"quantity":2`, `"quantity":2.0`)), 201, "", nil},
		"whole number by exponent":   {post(order(`"quantity":2`, `"quantity":20e-1`)), 201, "", nil},
		"too much, with a point":     {post(order(`"quantity":2`, `"quantity":101.0`)), 422, "validation_failed", at("body.items[0].quantity")},
		"fraction":                   {post(order(`"quantity":2`, `"quantity":1.5`)), 422, "validation_failed", at("body.items[0].quantity")},
		"huge":                       {post(order(`"quantity":2`, `"quantity":1e999`)), 422, "validation_failed", at("body.items[0].quantity")},
		"over int64":                 {post(order(`"items"`, `"big":9223372036854775808,"items"`)), 422, "validation_failed", at("body.big")},
		"second item":                {post(order(`"quantity":2}`, `"quantity":2,"a.b":1},{"itemId":"i2"}`)), 422, "validation_failed", at("body.items[0].a.b", "body.items[1].quantity")},
		"no items":                   {post(order(`[{"itemId":"i1","quantity":2}]`, `[]`)), 422, "validation_failed", at("body.items")},
		"latitude":                   {post(order(`12.9`, `90.5`)), 422, "validation_failed", at("body.deliverTo.location.coordinates[1]")},
		"both coordinates":           {post(order(`77.6,12.9`, `-181,91`)), 422, "validation_failed", at("body.deliverTo.location.coordinates[0]", "body.deliverTo.location.coordinates[1]")},
		"one coordinate":             {post(order(`77.6,12.9,900`, `77.6`)), 422, "validation_failed", at("body.deliverTo.location.coordinates")},
		"four coordinates":           {post(order(`900`, `900,1`)), 422, "validation_failed", at("body.deliverTo.location.coordinates")},
		"text coordinate":            {post(order(`77.6`, `"77.6"`)), 422, "validation_failed", at("body.deliverTo.location.coordinates[0]")},
		"no Point":                   {post(order(`"Point"`, `"Polygon"`)), 422, "validation_failed", at("body.deliverTo.location.type")},
		"point as array":             {post(order(point, `[77.6,12.9]`)), 422, "validation_failed", at("body.deliverTo.location")},
		"more in point":              {post(order(`"type":"Point"`, `"type":"Point","bbox":[]`)), 422, "validation_failed", at("body.deliverTo.location.bbox")},
		"blank text":                 {post(order(`  12 Main Street <A&B> `, ` \t\n `)), 422, "validation_failed", at("body.deliverTo.address")},
		"500 characters":             {post(order(`12 Main`, strings.Repeat("é", 500-len("12 Main Street <A&B>")+len("12 Main")))), 201, "", nil},
		"501 characters":             {post(order(`12 Main`, strings.Repeat("é", 501-len("12 Main Street <A&B>")+len("12 Main")))), 422, "validation_failed", at("body.deliverTo.address")},
		"NUL":                        {post(order(`12 Main`, `12\u0000Main`)), 422, "validation_failed", at("body.deliverTo.address")},
		"time":                       {post(order(`"items"`, `"at":"yesterday","items"`)), 422, "validation_failed", at("body.at")},
		"free":                       {post(order(`"items"`, `"free":{"a":[null,1e999]},"items"`)), 422, "validation_failed", at("body")},
		"headers and body":           {post(order(`"quantity":2`, `"quantity":101`), "If-Match", `"3`, "Idempotency-Key", "a b"), 422, "validation_failed", at("header.Idempotency-Key", "header.If-Match", "body.items[0].quantity")},
		"an empty If-Match":          {post(goodOrder, "If-Match", ""), 422, "validation_failed", at("header.If-Match")},
		"other version":              {post(goodOrder, "If-Match", `"3"`), 412, "precondition_failed", nil},
		"this version":               {post(goodOrder, "If-Match", `"1"`), 201, "", nil},

		"401 before all":  {post(`{`, "Authorization", "", "Content-Type", "text/plain"), 401, "unauthorized", nil},
		"403 before body": {call{method: "POST", path: "/v1/things/a%20b/verify", body: "{", header: map[string]string{"Authorization": bearer}}, 403, "forbidden", nil},

		"list":               {get("/v1/things/t1?unknown=1"), 200, "", nil},
		"list all":           {get("/v1/things/t1?limit=200&status=placed&status=accepted&open=false&since=2026-01-02T03:04:05Z&lat=-12.5"), 200, "", nil},
		"list nothing right": {get("/v1/things/t%2F1?limit=0&status=placed&status=x&open=2&lat=NaN&since=now"), 422, "validation_failed", at("path.id", "query.limit", "query.status[1]", "query.open", "query.lat", "query.since")},
		"empty limit":        {get("/v1/things/t1?limit="), 422, "validation_failed", at("query.limit")},
		"limit twice":        {get("/v1/things/t1?limit=1&limit=2"), 422, "validation_failed", at("query.limit")},
		"limit as text":      {get("/v1/things/t1?limit=12abc"), 422, "validation_failed", at("query.limit")},
		"huge limit":         {get("/v1/things/t1?limit=99999999999999999999"), 422, "validation_failed", at("query.limit")},
		"broken escape":      {get("/v1/things/t1?limit=%zz"), 422, "validation_failed", at("query")},
		"status not UTF-8":   {get("/v1/things/t1?status=%ff"), 422, "validation_failed", at("query.status")},

		"no such path":   {get("/v1/nothing"), 404, "not_found", nil},
		"wrong method":   {call{method: "DELETE", path: "/v1/orders"}, 405, "method_not_allowed", nil},
		"unknown method": {call{method: "BREW", path: "/v1/orders"}, 405, "method_not_allowed", nil},

		"no body":               {call{method: "POST", path: "/v1/things/t1/prepare"}, 200, "", nil},
		"{}":                    {call{method: "POST", path: "/v1/things/t1/prepare", body: "{}", header: map[string]string{"Content-Type": "application/json"}}, 200, "", nil},
		"empty with other type": {call{method: "POST", path: "/v1/things/t1/prepare", header: map[string]string{"Content-Type": "text/plain"}}, 200, "", nil},
		"webhook":               {call{method: "POST", path: "/v1/hook", body: "\xff{"}, 200, "", nil},

		"internal": {get("/fail/other"), 500, "internal", nil},
		"panic":    {get("/fail/panic"), 500, "internal", nil},
		"refused":  {get("/fail/refused"), 409, "invalid_transition", nil},
		"missing":  {get("/fail/missing"), 404, "order_not_found", nil},
		"late":     {get("/fail/late"), 503, "deadline_exceeded", nil},
		"busy":     {get("/fail/busy"), 503, "unavailable", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, chunked := range []bool{false, true} {
				c.chunked = chunked
				res, p, body := do(t, a, c.call)
				if res.StatusCode != c.status || p.Code != c.code {
					t.Errorf("%d %s, want %d %s: %s", res.StatusCode, p.Code, c.status, c.code, body)
				}
				var locations []string
				for _, e := range p.Errors {
					locations = append(locations, e.Location)
					if e.Message == "" {
						t.Errorf("no message: %+v", e)
					}
				}
				if d := cmp.Diff(c.at, locations); d != "" {
					t.Errorf("locations (-want +got): %s\n%s", d, body)
				}
				for _, value := range []string{"xyzzy", "12abc", "yesterday", "Polygon", "NaN", "r0"} {
					if strings.Contains(body, value) {
						t.Errorf("the answer holds %q: %s", value, body)
					}
				}
				if res.StatusCode == 503 && res.Header.Get("Retry-After") == "" {
					t.Error("503 without Retry-After")
				}
				if res.StatusCode == 405 && res.Header.Get("Allow") != "POST" {
					t.Errorf("Allow: %q", res.Header.Get("Allow"))
				}
				if res.StatusCode == 401 && !strings.HasPrefix(res.Header.Get("WWW-Authenticate"), "Bearer ") {
					t.Errorf("WWW-Authenticate: %q", res.Header.Get("WWW-Authenticate"))
				}
			}
		})
	}
}

func TestAnswer(t *testing.T) {
	t.Parallel()
	a := testAPI(t, io.Discard)
	res, _, body := do(t, a, call{method: "POST", path: "/v1/orders", body: goodOrder, header: map[string]string{
		"Authorization": "bearer " + mint(t, domain.Actor{Sub: "c1", Role: domain.Customer}), "Content-Type": "application/json", "Idempotency-Key": `"k1"`}})
	want := fmt.Sprintf(`{"address":"12 Main Street <A&B>","location":{"type":"Point","coordinates":[77.6,12.9]},"sub":"c1","key":"k1","raw":%d}`, len(goodOrder))
	if strings.TrimSpace(body) != want || res.Header.Get("ETag") != `"1"` || res.Header.Get("Content-Type") != "application/json" {
		t.Errorf("%v %s", res.Header, body)
	}
	if _, there := res.Header["Consistency-Token"]; there {
		t.Error("an empty header was sent")
	}
	ops := map[string]string{"Authorization": "Bearer " + mint(t, domain.Actor{Sub: "o1", Role: domain.Ops})}
	if res, _, body := do(t, a, call{method: "POST", path: "/v1/things/t1/verify", header: ops}); res.StatusCode != 204 || body != "" {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	ops["Content-Type"] = "application/json"
	if res, p, _ := do(t, a, call{method: "POST", path: "/v1/things/t1/verify", header: ops, body: `{"x":1}`}); res.StatusCode != 422 || p.Errors[0].Location != "body.x" {
		t.Errorf("%d %+v", res.StatusCode, p)
	}
	if _, _, body := do(t, a, call{method: "GET", path: "/v1/things/t1?status=accepted&open=true"}); strings.TrimSpace(body) != `{"id":"t1","limit":50,"status":["accepted"],"open":true}` {
		t.Error(body)
	}
	if _, p, _ := do(t, a, call{method: "GET", path: "/fail/refused"}); p.CurrentStatus != "placed" || p.Detail != "no" {
		t.Errorf("%+v", p)
	}
	if res, _, _ := do(t, a, call{method: "GET", path: "/fail/busy"}); res.Header.Get("Retry-After") != "2" {
		t.Errorf("Retry-After: %q", res.Header.Get("Retry-After"))
	}
}

// HEAD is answered wherever GET is. The answer is the same without the body.
func TestHead(t *testing.T) {
	t.Parallel()
	a := testAPI(t, io.Discard)
	a.Router.Get("/plain", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("plain")) })
	a.Router.Route("/sub", func(r chi.Router) {
		r.Get("/{id}", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("sub")) })
	})
	Register(a, operationFor("GET", "/v1/shops/nearby"), nil, func(context.Context, *struct{}) (*struct{ Body int }, error) { return &struct{ Body int }{1}, nil })
	Register(a, operationFor("PUT", "/v1/shops/{id}"), nil, func(context.Context, *struct {
		ID ID `path:"id"`
	}) (*struct{ Body int }, error) {
		return &struct{ Body int }{2}, nil
	})
	s := serveTest(t, a)
	ask := func(method, path string) (int, http.Header, string) {
		r, err := http.NewRequest(method, s.URL+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := s.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		res.Header.Del("Date")
		return res.StatusCode, res.Header, string(b)
	}
	for _, path := range []string{"/v1/things/t1", "/v1/things/a%20b", "/openapi.json", "/problems/rider-busy", "/problems/nothing", "/plain", "/sub/1", "/nothing"} {
		status, header, body := ask("GET", path)
		headStatus, headHeader, headBody := ask("HEAD", path)
		if headStatus != status || headBody != "" || body == "" {
			t.Errorf("%s: %d %q, HEAD %d %q", path, status, body, headStatus, headBody)
		}
		if d := cmp.Diff(header, headHeader); d != "" {
			t.Errorf("%s: headers (-GET +HEAD): %s", path, d)
		}
		if status == 200 {
			if status, header, _ := ask("DELETE", path); status != 405 || header.Get("Allow") != "GET, HEAD" {
				t.Errorf("%s: DELETE is %d, Allow %q", path, status, header.Get("Allow"))
			}
		}
	}
	for path, allow := range map[string]string{"/v1/shops/nearby": "GET, HEAD", "/v1/shops/near": "PUT"} {
		for method, is := range map[string]bool{"GET": allow != "PUT", "HEAD": allow != "PUT", "PUT": allow == "PUT", "POST": false} {
			status, header, _ := ask(method, path)
			if is && status != 200 || !is && (status != 405 || header.Get("Allow") != allow) {
				t.Errorf("%s %s: %d, Allow %q", method, path, status, header.Get("Allow"))
			}
		}
	}
	if status, _, _ := ask("HEAD", "/v1/orders"); status != 405 {
		t.Errorf("HEAD where there is no GET: %d", status)
	}
}

func TestCORS(t *testing.T) {
	t.Parallel()
	a := testAPI(t, io.Discard)
	preflight := func(origin string) string {
		res, _, _ := do(t, a, call{method: "OPTIONS", path: "/v1/orders", header: map[string]string{
			"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,idempotency-key"}})
		return res.Header.Get("Access-Control-Allow-Origin")
	}
	if preflight("https://app.example") != "https://app.example" || preflight("https://other.example") != "" {
		t.Error("origins are not told apart")
	}
	res, _, _ := do(t, a, call{method: "GET", path: "/v1/things/t1", header: map[string]string{"Origin": "https://app.example"}})
	if exposed := res.Header.Get("Access-Control-Expose-Headers"); !strings.Contains(exposed, "Consistency-Token") {
		t.Errorf("exposed: %q", exposed)
	}
}

// The cause of a 500 is logged and not shown to the caller.
func TestInternalIsLogged(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"panic", "other"} {
		var log strings.Builder
		do(t, testAPI(t, &log), call{method: "GET", path: "/fail/" + how})
		if !strings.Contains(log.String(), "xyzzy") || !strings.Contains(log.String(), "/fail/{how}") {
			t.Errorf("%s: the log lacks it: %s", how, log.String())
		}
	}
}

// Over a real connection, a body that is too large is refused, with and without a known
// length. So is a body that ends early. The deadline for bodies does not affect the next
// request of the connection.
func TestBodiesOverTheWire(t *testing.T) {
	t.Parallel()
	s := httptest.NewUnstartedServer(nil)
	s.Config = NewServer(testAPI(t, io.Discard))
	s.Start()
	defer s.Close()
	bearer := "Bearer " + mint(t, domain.Actor{Sub: "c1", Role: domain.Customer})
	for i, c := range []struct {
		body   io.Reader
		status int
	}{
		{strings.NewReader(goodOrder), 201},
		{strings.NewReader(strings.Repeat("x", 2*maxBodyBytes)), 413},
		{io.MultiReader(strings.NewReader(strings.Repeat("x", 2*maxBodyBytes))), 413},
		{io.MultiReader(strings.NewReader(goodOrder)), 201},
		{strings.NewReader(goodOrder), 201},
	} {
		r, err := http.NewRequest("POST", s.URL+"/v1/orders", c.body)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", bearer)
		r.Header.Set("Content-Type", "application/json")
		res, err := s.Client().Do(r)
		if err != nil {
			t.Fatal(i, err)
		}
		_, _ = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if res.StatusCode != c.status {
			t.Errorf("%d: %d, want %d", i, res.StatusCode, c.status)
		}
	}
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST /v1/orders HTTP/1.1\r\nHost: a\r\nAuthorization: %s\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{", bearer)
	_ = conn.(*net.TCPConn).CloseWrite()
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || res.StatusCode != 400 {
		t.Errorf("a body that ends early: %v %v", res, err)
	}
}

// If a handler panics after the answer has begun, the answer cannot become a problem. The
// connection is closed, so that the client does not take a part of the answer for all.
func TestPanicAfterTheAnswerBegan(t *testing.T) {
	t.Parallel()
	a := testAPI(t, io.Discard)
	a.Router.Get("/half", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("half"))
		w.(http.Flusher).Flush()
		panic("now")
	})
	s := httptest.NewServer(a)
	defer s.Close()
	res, err := s.Client().Get(s.URL + "/half")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.ReadAll(res.Body); err == nil {
		t.Error("half an answer looks whole")
	}
	if res, err := s.Client().Get(s.URL + "/v1/things/t1"); err != nil || res.StatusCode != 200 {
		t.Errorf("the process did not go on: %v", err)
	}
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for code, status := range map[domain.Code]int{
		domain.NotFound: 404, domain.Forbidden: 403, order.CodeArchived: 410, restaurant.CodeUnknown: 422, restaurant.CodeUnknownItem: 422,
		restaurant.CodeCurrencyMismatch: 422, rider.CodeBusy: 409, order.CodeAlreadyAssigned: 409, restaurant.CodeClosed: 409,
	} {
		p := FromError("order", fmt.Errorf("deciding: %w", domain.Refuse(code, "so it is")))
		if p.Status != status || p.Detail != "so it is" {
			t.Errorf("%s: %+v", code, p)
		}
		if _, _, body := do(t, testAPI(t, io.Discard), call{method: "GET", path: p.Type}); !strings.Contains(body, p.Code) {
			t.Errorf("%s says %s", p.Type, body)
		}
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	a := New(Options{Registry: registry})
	Register(a, huma.Operation{Method: "GET", Path: "/v1/things/{id}"}, nil, func(context.Context, *struct {
		ID string `path:"id"`
	}) (*struct{}, error) {
		return nil, nil
	})
	for _, path := range []string{"/v1/things/1", "/v1/things/2", "/nothing/1", "/nothing/2"} {
		do(t, a, call{method: "GET", path: path})
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]uint64{}
	for _, m := range families[0].GetMetric() {
		var labels []string
		for _, l := range m.GetLabel() {
			labels = append(labels, l.GetValue())
		}
		got[strings.Join(labels, " ")] = m.GetHistogram().GetSampleCount()
	}
	if d := cmp.Diff(map[string]uint64{"GET /v1/things/{id} 204": 2, "GET unmatched 404": 2}, got); d != "" {
		t.Error(d)
	}
}

func BenchmarkEmptyAuthenticated(b *testing.B) {
	auth, err := NewAuthenticator(AuthConfig{Secrets: []string{secret}})
	if err != nil {
		b.Fatal(err)
	}
	defer auth.Close()
	a := New(Options{Auth: auth, Registry: prometheus.NewRegistry()})
	Register(a, huma.Operation{Method: "GET", Path: "/v1/things/{id}"}, []domain.Role{domain.Ops}, func(context.Context, *listRequest) (*listResponse, error) {
		return &listResponse{}, nil
	})
	token, _ := MintToken(secret, domain.Actor{Sub: "o", Role: domain.Ops}, time.Hour)
	r := httptest.NewRequest("GET", "/v1/things/t1", nil)
	r.Header.Set("Authorization", "Bearer "+token)
	b.ReportAllocs()
	for b.Loop() {
		w := httptest.NewRecorder()
		a.ServeHTTP(w, r)
		if w.Code != 200 {
			b.Fatal(w.Body)
		}
	}
}
