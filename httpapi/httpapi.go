// Package httpapi is the part of HTTP that the command side and the query side share:
// the router, the registration and documentation of operations, problems,
// authentication, and limits.
//
// # The order of checks
//
// A request is checked in this order, and the answer is that of the first check that
// fails:
//
//  1. the path (404) and the method (405);
//  2. the token (401) and the role (403);
//  3. the media type (415), the size (413) and the syntax (400) of the body;
//  4. path, query, headers and body against their schemas (422 with all faults).
//
// Only then the handler runs. Every answer to a failure is a Problem.
//
// # State and failure
//
// An API has its routes and its OpenAPI document, which are complete before it serves.
// An Authenticator has a cache of verified tokens. If a handler panics, the answer is
// 500, the stack is logged, and the process goes on.
//
// # The files, in reading order
//
//	httpapi.go      the API: router, measurement, panics, limits of the server
//	register.go     Register: an operation from its input and output structs
//	binding.go      the request into the input struct
//	body.go         reading a body within its limits
//	plain.go        the fast way to read a body that has no fault
//	validate.go     the slow way, which finds all faults of a body
//	scan.go         cutting JSON into pieces, for validate.go
//	types.go        types for fields of requests: ID, Text, Line, Point, OrderID
//	conditional.go  types for headers: If-Match, Idempotency-Key
//	response.go     the output struct into the answer
//	problem.go      Problem, and how errors become problems
//	codes.go        the texts of /problems/<name>
//	openapi.go      the OpenAPI document
//	auth.go         tokens and actors
//	jwks.go         the key set of tokens that others sign
//	refusals.go     the log lines of requests that are refused with 401 or 403
package httpapi

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"
	"github.com/go-chi/cors"
	"github.com/prometheus/client_golang/prometheus"

	"tomato/domain"
	"tomato/domain/order"
)

// Options of an API.
type Options struct {
	Auth           *Authenticator        // must be set if an operation has roles
	AllowedOrigins []string              // the origins of pages that may call it (CORS); none: no CORS headers
	Log            *slog.Logger          // default slog.Default()
	Registry       prometheus.Registerer // nil: no metrics
	Title, Version string                // of the OpenAPI document
}

// API is the router with its OpenAPI document. Register everything before
// serving; serving is safe for concurrent use.
type API struct {
	// Router is for routes that are not ordinary operations, such as feeds and metrics.
	// Use Register or Handle where possible, because they check and document.
	Router chi.Router
	// OpenAPI is the content of /openapi.json.
	OpenAPI *huma.OpenAPI

	auth      *Authenticator
	log       *slog.Logger
	duration  *prometheus.HistogramVec
	problem   *huma.Schema
	strangers *budget // for the bodies of callers without a token; nil: no limit
	refusals  *refusals
	literals  map[string][]string // methods of the operations whose path has no parameters
}

// Behind returns an API whose requests first go through guard. The operations of that
// API are part of the same document. guard refuses a request with Refuse. Set
// authenticates if guard lets only authenticated callers pass; there is no budget for
// the bodies of their requests.
func (a *API) Behind(guard func(http.Handler) http.Handler, authenticates bool) *API {
	b := *a
	b.Router = a.Router.With(guard)
	if authenticates {
		b.strangers = nil
	}
	return &b
}

// New returns an API that serves /openapi.json and /problems/{name}.
func New(o Options) *API {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	a := &API{Router: chi.NewRouter(), auth: o.Auth, log: o.Log, strangers: newBudget(strangersBytes), refusals: newRefusals(), literals: map[string][]string{}}
	registry := huma.NewMapRegistry("#/components/schemas/", schemaNames())
	registry.RegisterTypeAlias(reflect.TypeFor[domain.Point](), reflect.TypeFor[Point]())
	registry.RegisterTypeAlias(reflect.TypeFor[order.DeliverTo](), reflect.TypeFor[deliverTo]())
	a.OpenAPI = &huma.OpenAPI{
		OpenAPI: "3.1.0",
		Info:    &huma.Info{Title: o.Title, Version: o.Version},
		Components: &huma.Components{
			Schemas:         registry,
			SecuritySchemes: map[string]*huma.SecurityScheme{"bearer": {Type: "http", Scheme: "bearer", BearerFormat: "JWT"}},
		},
	}
	a.problem = registry.Schema(reflect.TypeFor[Problem](), true, "")

	if o.Registry != nil {
		a.duration = prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "tomato_http_request_duration_seconds",
			Help:    "Time from the end of the request's header to the end of its handler, by route pattern.",
			Buckets: []float64{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"route", "method", "status"})
		o.Registry.MustRegister(a.duration, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "tomato_http_unauthenticated_body_bytes",
			Help: "What the bodies of callers without a token take now; bounded.",
		}, func() float64 { return float64(a.strangers.held.Load()) }))
	}
	a.Router.Use(a.observe, middleware.GetHead) // HEAD wherever GET
	if len(o.AllowedOrigins) > 0 {
		a.Router.Use(cors.Handler(cors.Options{
			AllowedOrigins: o.AllowedOrigins,
			AllowedMethods: []string{"GET", "HEAD", "POST", "PUT", "DELETE"},
			AllowedHeaders: []string{"Authorization", "Content-Type", "Idempotency-Key", "If-Match", "Consistency-Token", "Last-Event-ID"},
			ExposedHeaders: []string{"ETag", "Consistency-Token", "Retry-After", "Location", "WWW-Authenticate"},
			MaxAge:         600,
		}))
	}
	a.Router.Use(a.literalFirst)
	a.Router.NotFound(func(w http.ResponseWriter, r *http.Request) {
		Refuse(w, r, NewProblem(http.StatusNotFound, "not_found", "There is no such path."))
	})
	a.Router.MethodNotAllowed(a.methodNotAllowed)
	a.Router.Get("/problems/{name}", describe)

	document := sync.OnceValues(func() ([]byte, error) { return json.Marshal(a.OpenAPI) })
	openapi := func(w http.ResponseWriter, _ *http.Request) {
		b, err := document()
		if err != nil {
			a.fail(w, nil, FromError("", err))
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(b)
	}
	a.Router.Get("/openapi.json", openapi)
	return a
}

// ServeHTTP makes an API a handler.
func (a *API) ServeHTTP(w http.ResponseWriter, r *http.Request) { a.Router.ServeHTTP(w, r) }

// literalFirst answers 405 if the request's path is one without parameters that does not
// have the method, even if a path with parameters matches. PUT /v1/riders/nearby is not
// PUT /v1/riders/{id}. OpenAPI has the same rule.
func (a *API) literalFirst(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		method := r.Method
		if method == http.MethodHead {
			method = http.MethodGet
		}
		if methods, is := a.literals[r.URL.Path]; is && !slices.Contains(methods, method) {
			a.methodNotAllowed(w, r)
			return
		}
		next.ServeHTTP(w, r)
	})
}

func (a *API) methodNotAllowed(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Allow", strings.Join(a.allowed(r), ", "))
	Refuse(w, r, NewProblem(http.StatusMethodNotAllowed, "method_not_allowed", "The path takes other methods; Allow lists them."))
}

// allowed returns the methods that the request's path has.
func (a *API) allowed(r *http.Request) []string {
	literal, is := a.literals[r.URL.Path]
	path := r.URL.RawPath
	if path == "" {
		path = r.URL.Path
	}
	var out []string
	for _, m := range []string{"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} {
		if is && slices.Contains(literal, m) || !is && a.Router.Match(chi.NewRouteContext(), m, path) {
			if out = append(out, m); m == http.MethodGet {
				out = append(out, http.MethodHead)
			}
		}
	}
	return out
}

// noSniff is shared by all answers and must not be changed.
var noSniff = []string{"nosniff"}

// observe measures a request, and answers a panic of its handler with a problem.
func (a *API) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler { // a handler closes the connection on purpose
					panic(p)
				}
				a.log.Error("a request handler panicked", "method", r.Method, "route", route(r), "panic", p, "stack", string(debug.Stack()))
				if ww.Status() != 0 {
					// The answer has begun. To close the connection is the only
					// way left to show that the answer is not complete.
					panic(http.ErrAbortHandler)
				}
				WriteProblem(ww, FromError("", nil))
			}
			status := ww.Status()
			if status == http.StatusUnauthorized || status == http.StatusForbidden {
				a.logRefusal(r, status)
			}
			if a.duration != nil && status >= 200 { // a websocket has none
				a.duration.WithLabelValues(route(r), method(r), strconv.Itoa(status)).Observe(time.Since(start).Seconds())
			}
		}()
		ww.Header()["X-Content-Type-Options"] = noSniff
		switch r.Method {
		case http.MethodPost, http.MethodPut, http.MethodPatch:
		default: // nobody reads the body of such a request
			leaveBody(ww, r)
		}
		next.ServeHTTP(ww, r)
	})
}

// route returns the pattern that the request matched. It is used as a label of metrics,
// which must not be the path.
func route(r *http.Request) string {
	if c := chi.RouteContext(r.Context()); c != nil {
		if p := c.RoutePattern(); p != "" {
			return p
		}
	}
	return "unmatched"
}

func method(r *http.Request) string {
	switch r.Method {
	case "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS":
		return r.Method
	}
	return "other"
}

// fail answers with the problem, and logs its cause if the status is 500.
func (a *API) fail(w http.ResponseWriter, r *http.Request, p *Problem) {
	if p.Status == http.StatusInternalServerError {
		attrs := []any{"code", p.Code, "err", p.cause}
		if r != nil {
			attrs = append(attrs, "method", r.Method, "route", route(r))
		}
		a.log.Error("a request failed", attrs...)
	}
	WriteProblem(w, p)
}

// Limits of the server that NewServer makes.
const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 2 * time.Minute
	maxHeaderBytes    = 64 << 10
)

// NewServer returns an HTTP server with limits. It has no ReadTimeout and no
// WriteTimeout, because they would end feeds. Operations that are added with Register
// bound the time for reading a body themselves.
func NewServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
	}
}
