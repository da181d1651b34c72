// Package httpapi is what the command side and the query side share of HTTP:
// the router, the way an operation is registered and documented, problems,
// authentication, limits.
//
// # The order of checks
//
// Every operation answers the first of these that fails: an unknown path (404)
// or method (405); the token (401); the role (403); the media type (415), size
// (413) and syntax (400) of the body; then every fault of path, query, headers
// and body together (422). Only then the handler runs. What fails is a Problem.
//
// # State and failure
//
// Nothing here is authoritative: an API holds its routes and its OpenAPI
// document, which are complete before it serves, and the Authenticator a cache
// of verified tokens. A panicking handler is a 500, logged with its stack; the
// process goes on.
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
)

// Options say how an API behaves.
type Options struct {
	Auth           *Authenticator        // needed as soon as an operation has roles
	AllowedOrigins []string              // for CORS; none: no CORS headers at all
	Log            *slog.Logger          // default slog.Default()
	Registry       prometheus.Registerer // nil: no metrics
	Title, Version string                // of the OpenAPI document
}

// API is the router with its OpenAPI document. Register everything before
// serving; serving is safe for concurrent use.
type API struct {
	// Router takes what is no plain operation (feeds, metrics). Register and
	// Handle are to be preferred: they check, and they document.
	Router chi.Router
	// OpenAPI is the document behind /openapi.json.
	OpenAPI *huma.OpenAPI

	auth      *Authenticator
	log       *slog.Logger
	duration  *prometheus.HistogramVec
	problem   *huma.Schema
	strangers *budget             // of the bodies of callers without a token; nil: not bounded
	literals  map[string][]string // methods of the operations whose path has no parameters
}

// Behind returns an API whose operations let guard look at each request before
// they do. authenticates says that guard lets only those pass who have proved who
// they are: what their bodies take is not bounded then. guard refuses with Refuse.
func (a *API) Behind(guard func(http.Handler) http.Handler, authenticates bool) *API {
	b := *a
	b.Router = a.Router.With(guard)
	if authenticates {
		b.strangers = nil
	}
	return &b
}

// New makes an API that answers /openapi.json and /problems/{name}.
func New(o Options) *API {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	a := &API{Router: chi.NewRouter(), auth: o.Auth, log: o.Log, strangers: newBudget(strangersBytes), literals: map[string][]string{}}
	registry := huma.NewMapRegistry("#/components/schemas/", schemaNames())
	registry.RegisterTypeAlias(reflect.TypeFor[domain.Point](), reflect.TypeFor[Point]())
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

// literalFirst lets a path without parameters stand for its own operations alone,
// as OpenAPI has it: PUT /v1/riders/nearby is not PUT /v1/riders/{id}.
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

// allowed lists the methods that the request's path takes.
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

// noSniff is shared by all answers; whoever adds to it copies it.
var noSniff = []string{"nosniff"}

// observe measures a request and turns a panic into a problem.
func (a *API) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		ww := middleware.NewWrapResponseWriter(w, r.ProtoMajor)
		defer func() {
			if p := recover(); p != nil {
				if p == http.ErrAbortHandler { // how a handler hangs up on purpose
					panic(p)
				}
				a.log.Error("a request handler panicked", "method", r.Method, "route", route(r), "panic", p, "stack", string(debug.Stack()))
				if ww.Status() != 0 {
					// An answer has begun: cutting it off is the only way
					// left to say that it is not whole.
					panic(http.ErrAbortHandler)
				}
				WriteProblem(ww, FromError("", nil))
			}
			if status := ww.Status(); a.duration != nil && status >= 200 { // not of websockets
				a.duration.WithLabelValues(route(r), method(r), strconv.Itoa(status)).Observe(time.Since(start).Seconds())
			}
		}()
		ww.Header()["X-Content-Type-Options"] = noSniff
		switch r.Method {
		case http.MethodPost, http.MethodPut, http.MethodPatch:
		default: // nobody reads its body
			leaveBody(ww, r)
		}
		next.ServeHTTP(ww, r)
	})
}

// route is the pattern that the request matched: a label, so never the path.
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

// fail answers with the problem and logs it if it is our fault.
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

// NewServer makes an HTTP server with limits. It has no ReadTimeout and no
// WriteTimeout: both would cut feeds off; Register bounds the reading of bodies
// itself.
func NewServer(h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: readHeaderTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
	}
}
