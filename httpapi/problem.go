package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/restaurant"
)

// Problem is an error as the caller sees it: RFC 9457 problem details with a
// stable code. It is an error, and what every failing request answers with.
type Problem struct {
	Type          string       `json:"type" format:"uri-reference" doc:"A stable URI per code: /problems/order-already-assigned."`
	Title         string       `json:"title" doc:"The code in words, the same for every occurrence."`
	Status        int          `json:"status" minimum:"400" maximum:"599"`
	Detail        string       `json:"detail,omitempty" doc:"What happened this time."`
	Code          string       `json:"code" pattern:"^[a-z][a-z0-9_]*$" doc:"Clients branch on this."`
	CurrentStatus string       `json:"currentStatus,omitempty" doc:"The order's status, where the code is invalid_transition."`
	Errors        []FieldError `json:"errors,omitempty" doc:"Every fault of the request, up to 100, where the code is validation_failed."`

	// RetryAfter goes out as the header Retry-After, in whole seconds rounded
	// up; zero: no header.
	RetryAfter time.Duration `json:"-"`

	challenge string // WWW-Authenticate
	cause     error  // for the log, never for the caller
}

// FieldError is one fault of a request. It never holds the faulty value.
type FieldError struct {
	Location string `json:"location" doc:"body.items[0].quantity, query.limit, path.id, header.If-Match."`
	Message  string `json:"message"`
}

func (p *Problem) Error() string {
	if p.cause != nil {
		return p.Code + ": " + p.cause.Error()
	}
	return p.Code + ": " + p.Detail
}

// Unwrap gives what caused the problem; it is logged and not shown.
func (p *Problem) Unwrap() error { return p.cause }

// GetStatus is the HTTP status (huma.StatusError).
func (p *Problem) GetStatus() int { return p.Status }

// ContentType is that of a problem (huma.ContentTypeFilter).
func (p *Problem) ContentType(string) string { return problemJSON }

const problemJSON = "application/problem+json"

// NewProblem makes a problem; type and title follow from the code.
func NewProblem(status int, code, detail string) *Problem {
	return &Problem{Type: "/problems/" + strings.ReplaceAll(code, "_", "-"), Title: title(code), Status: status, Code: code, Detail: detail}
}

// Unavailable is a 503 which is safe to repeat after retryAfter.
func Unavailable(code, detail string, retryAfter time.Duration) *Problem {
	p := NewProblem(http.StatusServiceUnavailable, code, detail)
	p.RetryAfter = max(retryAfter, time.Second)
	return p
}

// Unauthorized is a 401; challenge goes out as WWW-Authenticate.
func Unauthorized(challenge, detail string) *Problem {
	p := NewProblem(http.StatusUnauthorized, "unauthorized", detail)
	p.challenge = challenge
	return p
}

// Invalid is a 422 that lists the faults of the request, the first 100 of them.
func Invalid(faults ...FieldError) *Problem {
	p := NewProblem(http.StatusUnprocessableEntity, "validation_failed", "The request has faults; errors lists them.")
	if len(faults) > maxFaults {
		p.Detail = "The request has faults; errors lists the first " + strconv.Itoa(maxFaults) + ". There are more."
		faults = faults[:maxFaults]
	}
	p.Errors = faults
	return p
}

// maxFaults bounds an answer, and the work on a request: a body of 1 MiB can hold
// 100,000 unknown fields. Whoever collects faults stops after one more.
const maxFaults = 100

// refusalStatus maps the domain's refusals to HTTP; what is not here is 409.
var refusalStatus = map[domain.Code]int{
	domain.NotFound:                 http.StatusNotFound,
	domain.Forbidden:                http.StatusForbidden,
	order.CodeArchived:              http.StatusGone,
	restaurant.CodeUnknown:          http.StatusUnprocessableEntity,
	restaurant.CodeUnknownItem:      http.StatusUnprocessableEntity,
	restaurant.CodeCurrencyMismatch: http.StatusUnprocessableEntity,
}

// FromError makes the problem that the caller sees of an error. A refusal
// keeps its code, not_found becomes <noun>_not_found; a problem stays; a passed
// deadline, or a caller who left, is a 503. Anything else is a 500 that says
// nothing; the error stays inside for the log.
func FromError(noun string, err error) *Problem {
	var p *Problem
	if errors.As(err, &p) && p != nil {
		return p
	}
	var r *domain.Refusal
	if errors.As(err, &r) {
		status, known := refusalStatus[r.Code]
		if !known {
			status = http.StatusConflict
		}
		code := string(r.Code)
		if r.Code == domain.NotFound {
			code = noun + "_not_found"
		}
		p = NewProblem(status, code, r.Detail)
		p.CurrentStatus = r.CurrentStatus
		return p
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		p = Unavailable("deadline_exceeded", "The answer did not come in time; the outcome is unknown. A repeat is safe with the same Idempotency-Key.", time.Second)
		p.cause = err
		return p
	}
	p = NewProblem(http.StatusInternalServerError, "internal", "Something went wrong on our side.")
	p.cause = err
	return p
}

// WriteProblem answers with the problem. Nothing may have been written before.
func WriteProblem(w http.ResponseWriter, p *Problem) {
	h := w.Header()
	h.Set("Content-Type", problemJSON)
	if p.RetryAfter > 0 {
		h.Set("Retry-After", strconv.FormatInt(int64((p.RetryAfter+time.Second-1)/time.Second), 10))
	}
	if p.challenge != "" {
		h.Set("WWW-Authenticate", p.challenge)
	}
	b, err := json.Marshal(p)
	if err != nil { // strings and ints only: cannot be
		b = []byte(`{"type":"/problems/internal","title":"Internal","status":500,"code":"internal"}`)
	}
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(p.Status)
	_, _ = w.Write(b)
}

// title is the code in words: order_already_paid, "Order already paid".
func title(code string) string {
	t := strings.ReplaceAll(code, "_", " ")
	if t == "" {
		return t
	}
	return strings.ToUpper(t[:1]) + t[1:]
}

// InvalidCursor is the problem of a query whose cursor no page of the list gave.
func InvalidCursor() *Problem {
	p := NewProblem(http.StatusUnprocessableEntity, "invalid_cursor", "The cursor is not one that this list gave.")
	p.Errors = []FieldError{{Location: "query.cursor", Message: "not a cursor of this list"}}
	return p
}
