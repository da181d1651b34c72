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

// Problem is an error as the caller sees it: problem details (RFC 9457) with a stable
// code. Every request that fails is answered with one.
type Problem struct {
	Type          string       `json:"type" format:"uri-reference" doc:"A stable URI per code: /problems/order-already-assigned."`
	Title         string       `json:"title" doc:"The code in words, the same for every occurrence."`
	Status        int          `json:"status" minimum:"400" maximum:"599"`
	Detail        string       `json:"detail,omitempty" doc:"What happened this time."`
	Code          string       `json:"code" pattern:"^[a-z][a-z0-9_]*$" doc:"Clients branch on this."`
	CurrentStatus string       `json:"currentStatus,omitempty" doc:"The order's status, where the code is invalid_transition."`
	Errors        []FieldError `json:"errors,omitempty" doc:"Every fault of the request, up to 100, where the code is validation_failed."`

	// RetryAfter is sent as the header Retry-After, in whole seconds, rounded up. If it
	// is zero, there is no header.
	RetryAfter time.Duration `json:"-"`

	challenge string // WWW-Authenticate
	cause     error  // for the log; never shown to the caller
}

// FieldError is one fault of a request. It never contains the faulty value.
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

// Unwrap returns the cause of the problem, which is logged and not shown to the caller.
func (p *Problem) Unwrap() error { return p.cause }

// GetStatus returns the HTTP status. It implements huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType returns the media type of problems. It implements huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return problemJSON }

const problemJSON = "application/problem+json"

// NewProblem returns a problem. Its type and title follow from the code.
func NewProblem(status int, code, detail string) *Problem {
	return &Problem{Type: "/problems/" + strings.ReplaceAll(code, "_", "-"), Title: title(code), Status: status, Code: code, Detail: detail}
}

// Unavailable returns a problem with status 503. The request may be repeated after
// retryAfter, which is at least one second.
func Unavailable(code, detail string, retryAfter time.Duration) *Problem {
	p := NewProblem(http.StatusServiceUnavailable, code, detail)
	p.RetryAfter = max(retryAfter, time.Second)
	return p
}

// Unauthorized returns a problem with status 401. challenge is sent as the header
// WWW-Authenticate.
func Unauthorized(challenge, detail string) *Problem {
	p := NewProblem(http.StatusUnauthorized, "unauthorized", detail)
	p.challenge = challenge
	return p
}

// Invalid returns a problem with status 422 that lists the first maxFaults of the faults.
func Invalid(faults ...FieldError) *Problem {
	p := NewProblem(http.StatusUnprocessableEntity, "validation_failed", "The request has faults; errors lists them.")
	if len(faults) > maxFaults {
		p.Detail = "The request has faults; errors lists the first " + strconv.Itoa(maxFaults) + ". There are more."
		faults = faults[:maxFaults]
	}
	p.Errors = faults
	return p
}

// maxFaults bounds the faults in an answer, and with it the work on a request: a body of
// 1 MiB can have 100,000 unknown fields. Code that collects faults stops after one more,
// which shows that there are more.
const maxFaults = 100

// refusalStatus has the HTTP status of the domain's refusals. The status of all other
// refusals is 409.
var refusalStatus = map[domain.Code]int{
	domain.NotFound:                 http.StatusNotFound,
	domain.Forbidden:                http.StatusForbidden,
	order.CodeArchived:              http.StatusGone,
	restaurant.CodeUnknown:          http.StatusUnprocessableEntity,
	restaurant.CodeUnknownItem:      http.StatusUnprocessableEntity,
	restaurant.CodeCurrencyMismatch: http.StatusUnprocessableEntity,
}

// FromError returns the problem that the caller sees for an error:
//
//   - a *Problem is returned as it is;
//   - a *domain.Refusal keeps its code, except that not_found becomes
//     <noun>_not_found;
//   - a deadline that has passed, or a canceled context, is 503;
//   - any other error is 500. Its text is kept for the log and not shown.
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

// WriteProblem answers with the problem. Nothing may have been written to w before.
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
	if err != nil { // cannot happen, because a Problem has only strings and integers
		b = []byte(`{"type":"/problems/internal","title":"Internal","status":500,"code":"internal"}`)
	}
	h.Set("Content-Length", strconv.Itoa(len(b)))
	w.WriteHeader(p.Status)
	_, _ = w.Write(b)
}

// title returns the code in words: "Order already paid" for order_already_paid.
func title(code string) string {
	t := strings.ReplaceAll(code, "_", " ")
	if t == "" {
		return t
	}
	return strings.ToUpper(t[:1]) + t[1:]
}

// InvalidCursor returns the problem for a cursor that no page of the list has given.
func InvalidCursor() *Problem {
	p := NewProblem(http.StatusUnprocessableEntity, "invalid_cursor", "The cursor is not one that this list gave.")
	p.Errors = []FieldError{{Location: "query.cursor", Message: "not a cursor of this list"}}
	return p
}
