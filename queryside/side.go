// Package queryside answers REST queries from the read models. Package
// queryside/feed serves the realtime feeds.
//
// A query first waits until the read models that it needs have passed its
// Consistency-Token. Then it reads their serving generations in one statement, and so
// as of one moment. Queries write nothing, and no state is kept between them. What a
// caller may see is decided for each query from the row. If a read model does not
// pass the token in time, or Postgres is unavailable, the answer is 503 with
// Retry-After, and never 404 or an empty list.
//
// The files, in reading order:
//
//	side.go    what all queries share: the token, errors, pages, searches by distance
//	orders.go  the queries of one noun; also payments.go, restaurants.go, riders.go
package queryside

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"net/http"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/pgerr"
	"tomato/eventlog/subjectkeys"
	"tomato/httpapi"
)

// ReadModels gives access to the serving generations of the read models.
type ReadModels interface {
	// Read waits until the given read models have passed after, and then calls query
	// with their schemas, in the same order. It fails with eventlog.ErrBehind if the
	// wait takes too long. It may call query twice.
	Read(ctx context.Context, after eventlog.Token, models []string, query func(schemas []string) error) error
	// Reached returns what the read models with these schemas have passed by now, or
	// somewhat less, in the logs that they are made of.
	Reached(ctx context.Context, schemas []string) (eventlog.Token, error)
}

// queryTimeout bounds a query, including its wait for a token.
const queryTimeout = 10 * time.Second

const retryAfter = time.Second

// Side is the query side of one process. All fields are set before use.
type Side struct {
	DB             *pgxpool.Pool
	Models         ReadModels
	Keys           subjectkeys.Opener // open what is personal in answers
	LogID          eventlog.LogID     // of the logs that the read models are made of
	FeedEnd        *eventlog.FeedEnd  // nil: tokens of answers say nothing of what they do not name
	PositionMaxAge time.Duration      // a rider whose position is older is not found nearby
}

// Routes registers all queries.
func (s *Side) Routes(api *httpapi.API) {
	s.orderRoutes(api)
	s.riderRoutes(api)
	s.restaurantRoutes(api)
	s.paymentRoutes(api)
}

var everyone = []domain.Role{domain.Customer, domain.Restaurant, domain.Rider, domain.Ops, domain.Support}

func operation(path, id, summary string, errors ...int) huma.Operation {
	return huma.Operation{Method: http.MethodGet, Path: path, OperationID: id, Summary: summary, Errors: errors}
}

// queryInput is what every query takes.
type queryInput struct {
	After consistencyToken `header:"Consistency-Token" doc:"Of an earlier answer: the query sees at least that much."`
}

// consistencyToken is the type of the parameter Consistency-Token.
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

// read runs a query within queryTimeout. It returns the Consistency-Token of the answer,
// which the rows that were read have passed. Its errors are fit for the caller.
func (s *Side) read(ctx context.Context, after consistencyToken, models []string, query func(ctx context.Context, schemas []string) error) (answer string, err error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	token, err := after.For(s.LogID)
	if err != nil {
		return "", Problem(err)
	}
	var passed eventlog.Token
	err = s.Models.Read(ctx, token, models, func(schemas []string) (err error) {
		feed, known := s.FeedEnd.Last() // before the rows are read, too
		defer func() {
			if known && passed != nil {
				passed.Add(feed.Topic, feed.Partition, feed.Offset)
			}
		}()
		if passed, err = s.Models.Reached(ctx, schemas); err != nil { // before the rows are read
			return err
		}
		return query(ctx, schemas)
	})
	if err != nil {
		return "", Problem(err)
	}
	return s.LogID.Format(passed.String()), nil
}

// Problem returns the error that a caller sees for an error of a query. The calls for
// operators use it too.
func Problem(err error) error {
	switch {
	case errors.Is(err, eventlog.ErrUnknownToken):
		return httpapi.UnknownToken()
	case errors.Is(err, eventlog.ErrBehind):
		return httpapi.Unavailable("read_model_behind", "The read model has not reached the Consistency-Token in time.", retryAfter)
	case errors.Is(err, eventlog.ErrUnavailable):
		return httpapi.Unavailable("unavailable", "The keys of personal data cannot be read now.", retryAfter)
	case pgerr.Code(err) == "42703": // no such column: another build has made the tables, and a rebuild is due
		return httpapi.Unavailable("unavailable", "The read model was made by another version of this program and has to be rebuilt.", retryAfter)
	case unavailable(err):
		return httpapi.Unavailable("unavailable", "The read models cannot be reached now.", retryAfter)
	}
	return err
}

// unavailable reports whether Postgres or the brokers did not answer a query. If the
// query's deadline has passed, they did not answer either, whatever the reason.
func unavailable(err error) bool {
	return pgerr.Unavailable(err) || pgerr.Code(err) == "" && errors.Is(err, context.DeadlineExceeded)
}

// notFound returns the error for something that does not exist. A caller who may not
// know of it gets the same error.
func notFound(noun string) error {
	return httpapi.FromError(noun, domain.Refuse(domain.NotFound, "There is no such %s.", noun))
}

func forbidden(detail string) error {
	return httpapi.NewProblem(http.StatusForbidden, string(domain.Forbidden), detail)
}

// page has the parameters of a list.
type page struct {
	Limit  int    `query:"limit" minimum:"1" maximum:"200" default:"50"`
	Cursor string `query:"cursor" doc:"nextCursor of the page before."`
}

// pageEnd is the last item of a page, in a list that is sorted by time and id, both
// descending. The next page begins after it.
type pageEnd struct {
	at time.Time // whole microseconds, as in Postgres
	id string
}

// String returns the cursor that names e: [A-Za-z0-9_-]*.
func (e pageEnd) String() string {
	b := binary.AppendVarint(make([]byte, 0, 48), e.at.UnixMicro())
	return base64.RawURLEncoding.EncodeToString(append(b, e.id...))
}

// start returns the end of the page before, which the cursor names. Without a cursor
// it returns a value that sorts before all items. It fails if no page of a list gave
// the cursor.
func (p page) start() (pageEnd, error) {
	if p.Cursor == "" {
		return pageEnd{time.Date(9999, 1, 1, 0, 0, 0, 0, time.UTC), ""}, nil
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(p.Cursor)
	micros, n := binary.Varint(b)
	if err == nil && n > 0 && domain.ValidID(string(b[n:])) {
		if end := (pageEnd{time.UnixMicro(micros).UTC(), string(b[n:])}); end.String() == p.Cursor && end.at.Year() > 2000 && end.at.Year() < 9999 {
			return end, nil
		}
	}
	return pageEnd{}, httpapi.InvalidCursor()
}

// cut cuts items to a page of limit items. items has one more if there is a next page,
// whose cursor cut then returns. end returns the page's end for its last item.
func cut[T any](items []T, limit int, end func(*T) pageEnd) (page []T, nextCursor string) {
	if len(items) <= limit {
		return items, ""
	}
	items = items[:limit]
	return items, end(&items[limit-1]).String()
}

// around has the parameters of a search around a point.
type around struct {
	Lat    float64 `query:"lat" required:"true" minimum:"-90" maximum:"90"`
	Lng    float64 `query:"lng" required:"true" minimum:"-180" maximum:"180"`
	Radius float64 `query:"radius" minimum:"1" maximum:"50000" default:"5000" doc:"Meters."`
	Limit  int     `query:"limit" minimum:"1" maximum:"200" default:"50"`
}

// nearestFirst runs a query that reads rows in the order of distance by walking an
// index. walk must be appended to the expression of its ORDER BY.
//
// Within some nanometres of the equator or of longitude 0, ±90 or ±180, PostGIS
// finds its own order wrong because of rounding, and the query fails (XX000, "index
// returned tuples in wrong order"). nearestFirst then runs the query again with a
// walk that makes Postgres sort the rows.
func nearestFirst(query func(walk string) error) error {
	err := query("")
	if pgerr.Code(err) == "XX000" {
		return query(" + 0") // the index has no order of this expression
	}
	return err
}

// readState reads the state that a row of a read model has as JSON.
func readState[S any](text []byte) (*S, error) {
	var s S
	err := domain.DecodeJSON(text, &s)
	return &s, err
}
