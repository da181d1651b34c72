package commandside

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/danielgtaylor/huma/v2"
	"github.com/google/uuid"

	"tomato/domain"
	"tomato/domain/rooms"
	"tomato/eventlog"
	"tomato/httpapi"
)

// emitBody is the body of a call of internal/emit.
type emitBody struct {
	Event   string          `json:"event" minLength:"1" maxLength:"100" doc:"Letters, digits, _ . - and colons between. Names that begin with feed: are refused."`
	Room    string          `json:"room" minLength:"3" maxLength:"80" doc:"user:<id>, restaurant:<id>, order:<id> or ops."`
	Payload json.RawMessage `json:"payload" doc:"Any JSON but null, of at most TOMATO_FEED_EMIT_BYTES (64 KiB) without white space; else 413."`
	Role    string          `json:"role,omitempty" enum:"customer,rider" doc:"With a room user:<id>: only to the customer, or only to the rider, of this id. Default: to both."`
}

// TransformSchema adds to /openapi.json what emit checks itself.
func (emitBody) TransformSchema(_ huma.Registry, s *huma.Schema) *huma.Schema {
	type object = map[string]any
	s.Properties["event"].Extensions = object{"pattern": rooms.EventPattern, "not": object{"pattern": "^feed:"}}
	s.Properties["room"].Extensions = object{"pattern": rooms.Pattern}
	s.Properties["payload"].Extensions = object{"not": object{"type": "null"}}
	s.Extensions = object{"anyOf": []any{
		object{"not": object{"required": []string{"role"}}},
		object{"properties": object{"room": object{"pattern": "^user:"}}},
	}}
	return s
}

// emitRoutes adds POST /api/v1/internal/emit, which sends a message to a room. It
// answers 202 when the message is a record on the topic feed. The feeds of all
// instances read it there and send it. A repeated call sends the message again.
func (s *Side) emitRoutes(api *httpapi.API) {
	type input struct {
		Key  string `header:"x-internal-key"`
		Body emitBody
	}
	type output struct{}
	// The key is checked before the body is read.
	httpapi.Register(api.Behind(s.internalKey, true), huma.Operation{
		Method: http.MethodPost, Path: "/api/v1/internal/emit", OperationID: "emit", Tags: []string{"internal"},
		Summary: "Send a message to a room", DefaultStatus: http.StatusAccepted, Errors: []int{http.StatusUnauthorized, http.StatusServiceUnavailable},
	}, nil, func(ctx context.Context, in *input) (*output, error) {
		return nil, s.emit(ctx, in.Body)
	})
}

func (s *Side) emit(ctx context.Context, b emitBody) error {
	var faults []httpapi.FieldError
	if !rooms.ValidEvent(b.Event) {
		faults = append(faults, httpapi.FieldError{Location: "body.event", Message: "expected letters, digits, _ . - and colons between, not beginning with feed:"})
	}
	if !rooms.Valid(b.Room) {
		faults = append(faults, httpapi.FieldError{Location: "body.room", Message: "expected user:<id>, restaurant:<id>, order:<id> or ops"})
	}
	if len(b.Payload) == 0 || string(b.Payload) == "null" {
		faults = append(faults, httpapi.FieldError{Location: "body.payload", Message: "expected a JSON value other than null"})
	}
	if b.Role != "" && !rooms.IsUser(b.Room) {
		faults = append(faults, httpapi.FieldError{Location: "body.role", Message: "goes only with a room user:<id>"})
	}
	if len(faults) > 0 {
		return httpapi.Invalid(faults...)
	}
	var payload bytes.Buffer
	if err := json.Compact(&payload, b.Payload); err != nil {
		return err
	}
	if most := cmp.Or(s.EmitBytes, 64<<10); payload.Len() > most {
		return httpapi.NewProblem(http.StatusRequestEntityTooLarge, "body_too_large", fmt.Sprintf("The payload has %d bytes without white space, and may have %d. Emit what it is about, and let clients load the rest over REST.", payload.Len(), most))
	}
	ctx, cancel := context.WithTimeout(ctx, s.CommandDeadline)
	defer cancel()
	err := s.send(ctx, rooms.Emit{Event: b.Event, Room: b.Room, Payload: payload.Bytes(), Role: domain.Role(b.Role)}, domain.Time(time.Now()))
	if err != nil {
		s.Log.Warn("an emitted message is not on Kafka in time", "err", err)
		return httpapi.Unavailable("unavailable", "The message could not be kept in time; it may still be sent.", time.Second)
	}
	return nil
}

// send appends a message to a room, of time at, to topic feed.
func (s *Side) send(ctx context.Context, message rooms.Emit, at time.Time) error {
	data, err := json.Marshal(message)
	if err != nil {
		return err
	}
	id, err := uuid.NewV7()
	if err != nil {
		return err
	}
	e := eventlog.Event{ID: id.String(), Source: "/tomato/commandside/emit", Type: rooms.Emitted, Time: at, Subject: message.Room, Data: data}
	return s.produce(ctx, e.NewRecord(eventlog.Feed, eventlog.PartitionFor(message.Room, s.Partitions)))
}

// internalKey refuses a request without one of the internal keys.
func (s *Side) internalKey(next http.Handler) http.Handler {
	var want [][sha256.Size]byte
	for _, key := range s.InternalKeys {
		if key == "" {
			continue
		}
		want = append(want, sha256.Sum256([]byte(key)))
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got := sha256.Sum256([]byte(r.Header.Get("x-internal-key")))
		if !slices.ContainsFunc(want, func(w [sha256.Size]byte) bool { return subtle.ConstantTimeCompare(got[:], w[:]) == 1 }) {
			w.Header().Set("WWW-Authenticate", `Internal-Key realm="tomato"`)
			httpapi.Refuse(w, r, httpapi.NewProblem(http.StatusUnauthorized, "unauthorized", "The header x-internal-key is missing or wrong."))
			return
		}
		next.ServeHTTP(w, r)
	})
}
