package httpapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"tomato/domain"
)

// serveTest starts a server for a on a free port.
func serveTest(t *testing.T, a *API) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(nil)
	s.Config = NewServer(a)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

// begin sends the header of a request that announces a body, and a part of the body.
func begin(t *testing.T, s *httptest.Server, request string, announced int, sent string) *bufio.Reader {
	t.Helper()
	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute)) // so that a test that fails ends
	fmt.Fprintf(conn, "%s\r\nHost: a\r\nContent-Length: %d\r\n\r\n%s", request, announced, sent)
	return bufio.NewReader(conn)
}

func operationFor(method, path string) huma.Operation {
	return huma.Operation{Method: method, Path: path}
}

type rawInput struct{ RawBody []byte }

func echoLength(_ context.Context, in *rawInput) (*struct{ Body int }, error) {
	return &struct{ Body int }{len(in.RawBody)}, nil
}

func awaitHeld(t *testing.T, b *budget, want int64) {
	t.Helper()
	tick, deadline := time.NewTicker(time.Millisecond), time.After(time.Minute)
	defer tick.Stop()
	for b.held.Load() != want {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("%d bytes are held, want %d", b.held.Load(), want)
		}
	}
}

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// Callers without a token who announce a large body and send nothing cost almost no
// memory. The memory for what all of them send is bounded, and is free again when they
// leave. Callers with a token do not wait for them.
func TestBodiesOfStrangersAreBounded(t *testing.T) {
	a := testAPI(t, io.Discard)
	s := serveTest(t, a)
	const callers = 100
	before := allocated()
	for range callers {
		begin(t, s, "POST /v1/hook HTTP/1.1", maxBodyBytes, "")
	}
	awaitHeld(t, a.strangers, callers*firstBodyBytes)
	if got := allocated() - before; got > 30<<20 {
		t.Errorf("%d callers who announce 1 MiB and send nothing cost %d MiB", callers, got>>20)
	}

	a = testAPI(t, io.Discard)
	a.strangers = newBudget(64 << 10)
	Register(a, operationFor("POST", "/v1/other"), nil, echoLength) // without roles, so it has the budget
	s = serveTest(t, a)
	half := strings.Repeat("x", 32<<10)
	first := begin(t, s, "POST /v1/other HTTP/1.1", len(half)+1, half)
	awaitHeld(t, a.strangers, int64(len(half)+1))
	res, err := http.ReadResponse(begin(t, s, "POST /v1/other HTTP/1.1", 2*len(half), half+half), nil)
	if err != nil || res.StatusCode != http.StatusServiceUnavailable || res.Header.Get("Retry-After") == "" || !res.Close {
		t.Errorf("over the bound: %v %v", res, err)
	}
	known := "Authorization: Bearer " + mint(t, domain.Actor{Sub: "c1", Role: domain.Customer}) + "\r\nContent-Type: application/json"
	padded := goodOrder + strings.Repeat(" ", 128<<10)
	if res, err := http.ReadResponse(begin(t, s, "POST /v1/orders HTTP/1.1\r\n"+known, len(padded), padded), nil); err != nil || res.StatusCode != http.StatusCreated {
		t.Errorf("a caller with a token: %v %v", res, err)
	}
	if res, err := http.ReadResponse(begin(t, s, "POST /v1/other HTTP/1.1", 3, "abc"), nil); err != nil || res.StatusCode != http.StatusOK {
		t.Errorf("another one, of a small body: %v %v", res, err)
	}
	s.CloseClientConnections()
	_, _ = io.Copy(io.Discard, first)
	awaitHeld(t, a.strangers, 0)
}

// A request that is refused before its body is read is answered at once, even if the body
// never arrives.
func TestRefusalsDoNotWaitForTheBody(t *testing.T) {
	t.Parallel()
	a := testAPI(t, io.Discard)
	keyed := a.Behind(func(http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			Refuse(w, r, Unauthorized("Key", "No."))
		})
	}, false)
	Register(keyed, operationFor("POST", "/v1/keyed"), nil, echoLength)
	s := serveTest(t, a)
	bearer := "\r\nAuthorization: Bearer " + mint(t, domain.Actor{Sub: "c1", Role: domain.Customer})
	for request, want := range map[string]int{
		"POST /v1/orders HTTP/1.1":                                         401,
		"POST /v1/things/t1/verify HTTP/1.1" + bearer:                      403,
		"POST /v1/orders HTTP/1.1" + bearer + "\r\nContent-Type: text/csv": 415,
		"POST /v1/nothing HTTP/1.1":                                        404,
		"PUT /v1/hook HTTP/1.1":                                            405,
		"POST /v1/keyed HTTP/1.1":                                          401,
		"GET /v1/things/t1 HTTP/1.1":                                       200,
		"GET /openapi.json HTTP/1.1":                                       200,
	} {
		conn := begin(t, s, request, 1000, "")
		res, err := http.ReadResponse(conn, nil)
		if err != nil || res.StatusCode != want || !res.Close {
			t.Errorf("%s: %v %v, want %d and the connection closed", request, res, err, want)
			continue
		}
		_, _ = io.Copy(io.Discard, res.Body)
		// Without a deadline the server would wait for the rest of the body.
		if _, err := conn.ReadByte(); err != io.EOF {
			t.Errorf("%s: the connection ends with %v, want EOF", request, err)
		}
	}
	if res, err := http.ReadResponse(begin(t, s, "POST /v1/hook HTTP/1.1", maxBodyBytes+1, ""), nil); err != nil || res.StatusCode != 413 {
		t.Errorf("too large: %v %v", res, err)
	}
}

// A body that has only faults costs a few times its own size in memory. The answer lists
// the first 100 faults and says that there are more.
func TestFaultsAreBounded(t *testing.T) {
	a := testAPI(t, io.Discard)
	var unknown, lines strings.Builder
	for i := 0; unknown.Len() < maxBodyBytes-100; i++ {
		fmt.Fprintf(&unknown, `"f%d":%d,`, i, i)
	}
	for lines.Len() < maxBodyBytes-1000 {
		lines.WriteString(`{"riderId":0,"x":[{}]},`)
	}
	type position struct {
		RiderID ID `json:"riderId"`
	}
	type bulk struct {
		Body struct {
			Positions []position `json:"positions"`
		}
	}
	Register(a, operationFor("POST", "/v1/bulk"), nil, func(context.Context, *bulk) (*struct{}, error) { return nil, nil })
	header := map[string]string{"Content-Type": "application/json", "Authorization": "Bearer " + mint(t, domain.Actor{Sub: "c1", Role: domain.Customer})}
	for name, c := range map[string]call{
		"unknown fields": {method: "POST", path: "/v1/orders", body: "{" + strings.TrimSuffix(unknown.String(), ",") + "}", header: header},
		"broken items":   {method: "POST", path: "/v1/bulk", body: `{"positions":[` + strings.TrimSuffix(lines.String(), ",") + `]}`, header: header},
		"deep":           {method: "POST", path: "/v1/orders", body: `{"x":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + "}", header: header},
	} {
		before := allocated()
		res, p, _ := do(t, a, c)
		if got := allocated() - before; got > 10<<20 {
			t.Errorf("%s: %d MiB of allocations", name, got>>20)
		}
		if res.StatusCode != 422 || name != "deep" && (len(p.Errors) != 100 || !strings.Contains(p.Detail, "first 100")) {
			t.Errorf("%s: %d, %d faults, %s", name, res.StatusCode, len(p.Errors), p.Detail)
		}
	}
}
