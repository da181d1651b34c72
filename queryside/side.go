// Package queryside answers REST queries from the read models. Package feed
// beneath it serves the realtime feeds.
//
// A query reads the serving generations of the read models it needs, in one
// statement and so as of one moment, after they have passed its
// Consistency-Token. Nothing here writes, and nothing is kept between queries;
// what a caller may see is decided from the row, each time. A read model that
// does not reach the token in time, and a Postgres that is away, are a 503 with
// Retry-After; they never become a 404 or an empty list.
package queryside

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/pgerr"
	"tomato/httpapi"
)

// ReadModels gives access to the serving generations of the read models.
type ReadModels interface {
	// Read calls query with the schemas of the given read models, in their
	// order, once they have passed after. It fails with eventlog.ErrBehind if
	// that takes too long. query may be called twice.
	Read(ctx context.Context, after eventlog.Token, models []string, query func(schemas []string) error) error
}

// queryTimeout bounds a query, its wait for a token included.
const queryTimeout = 10 * time.Second

const retryAfter = time.Second

// Side is the query side of one process. All fields are set before use.
type Side struct {
	DB             *pgxpool.Pool
	Models         ReadModels
	LogID          eventlog.LogID // of the logs that the tokens of clients are for
	PositionMaxAge time.Duration  // of a rider's position that counts as fresh
}

// Routes registers all queries.
func (s *Side) Routes(api *httpapi.API) {
	s.orderRoutes(api)
	s.riderRoutes(api)
	s.restaurantRoutes(api)
	s.paymentRoutes(api)
}

var everyone = []domain.Role{domain.Customer, domain.Restaurant, domain.Rider, domain.Ops}

func operation(path, id, summary string, errors ...int) huma.Operation {
	return huma.Operation{Method: http.MethodGet, Path: path, OperationID: id, Summary: summary, Errors: errors}
}

// queryInput is what every query takes.
type queryInput struct {
	After consistencyToken `header:"Consistency-Token" doc:"Of an earlier answer: the query sees at least that much."`
}

// consistencyToken is a parameter field.
type consistencyToken struct{ eventlog.ClientToken }

// UnmarshalText reads the header's value.
func (t *consistencyToken) UnmarshalText(b []byte) (err error) {
	t.ClientToken, err = eventlog.ParseClientToken(string(b))
	return err
}

// Schema describes the header.
func (consistencyToken) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Extensions: map[string]any{"pattern": "^[A-Za-z0-9_-]*$"}}
}

// read runs a query; its errors are what the caller sees.
func (s *Side) read(ctx context.Context, after consistencyToken, models []string, query func(ctx context.Context, schemas []string) error) error {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	token, err := after.For(s.LogID)
	if err != nil {
		return Problem(err)
	}
	return Problem(s.Models.Read(ctx, token, models, func(schemas []string) error { return query(ctx, schemas) }))
}

// Problem returns what a caller sees of an error of a query, and of one of the
// operators' calls.
func Problem(err error) error {
	switch {
	case errors.Is(err, eventlog.ErrUnknownToken):
		return httpapi.UnknownToken()
	case errors.Is(err, eventlog.ErrBehind):
		return httpapi.Unavailable("read_model_behind", "The read model has not reached the Consistency-Token in time.", retryAfter)
	case unavailable(err):
		return httpapi.Unavailable("unavailable", "The read models cannot be reached now.", retryAfter)
	}
	return err
}

// unavailable reports whether Postgres or the brokers gave no answer to a query.
// A query that ran into its deadline had no answer either, whatever held it up.
func unavailable(err error) bool {
	return pgerr.Unavailable(err) || pgerr.Code(err) == "" && errors.Is(err, context.DeadlineExceeded)
}

// notFound is also what a caller sees who is no party.
func notFound(noun string) error {
	return httpapi.FromError(noun, domain.Refuse(domain.NotFound, "There is no such %s.", noun))
}

func forbidden(detail string) error {
	return httpapi.NewProblem(http.StatusForbidden, string(domain.Forbidden), detail)
}

// page are the parameters of a list.
type page struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50"`
	Cursor string `query:"cursor" doc:"nextCursor of the page before."`
}

// listPlace is where a page ends, in a list by time and id, both descending.
type listPlace struct {
	at time.Time // whole microseconds, as Postgres has it
	id string
}

// String returns it as [A-Za-z0-9_-]*: what a cursor is.
func (p listPlace) String() string {
	b := binary.AppendVarint(make([]byte, 0, 48), p.at.UnixMicro())
	return base64.RawURLEncoding.EncodeToString(append(b, p.id...))
}

// start returns the place that the cursor names, or one before all.
func (p page) start() (listPlace, error) {
	if p.Cursor == "" {
		return listPlace{time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), ""}, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(p.Cursor)
	micros, n := binary.Varint(b)
	if err == nil && n > 0 && domain.ValidID(string(b[n:])) {
		if at := (listPlace{time.UnixMicro(micros).UTC(), string(b[n:])}); at.String() == p.Cursor && at.at.Year() > 2000 && at.at.Year() < 9999 {
			return at, nil
		}
	}
	return listPlace{}, httpapi.InvalidCursor()
}

// cut takes the row too many off a page, which says that there is a next one.
func cut[T any](items []T, limit int, at func(*T) listPlace) (page []T, nextCursor string) {
	if len(items) <= limit {
		return items, ""
	}
	items = items[:limit]
	return items, at(&items[limit-1]).String()
}

// around are the parameters of a search by place.
type around struct {
	Lat    float64 `query:"lat" required:"true" minimum:"-90" maximum:"90"`
	Lng    float64 `query:"lng" required:"true" minimum:"-180" maximum:"180"`
	Radius float64 `query:"radius" minimum:"1" maximum:"50000" default:"5000" doc:"Meters."`
	Limit  int     `query:"limit" minimum:"1" maximum:"200" default:"50"`
}

// nearestFirst runs a query that walks an index on places by distance: walk is
// what its ORDER BY ends with. Within some nanometres of the equator or of
// longitude 0, ±90 or ±180, rounding makes PostGIS find its own order wrong and
// give up (XX000, "index returned tuples in wrong order"); then the places in
// reach are sorted instead.
func nearestFirst(query func(walk string) error) error {
	err := query("")
	if pgerr.Code(err) == "XX000" {
		return query(" + 0") // no longer what the index is ordered by
	}
	return err
}

// readState reads the JSON that a read model keeps.
func readState[S any](text []byte) (*S, error) {
	var s S
	err := json.Unmarshal(text, &s)
	return &s, err
}
