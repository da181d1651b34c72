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
	Errors        []FieldError `json:"errors,omitempty" doc:"Every fault of the request, where the code is validation_failed."`

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

// Invalid is a 422 that lists the faults of the request.
func Invalid(faults ...FieldError) *Problem {
	p := NewProblem(http.StatusUnprocessableEntity, "validation_failed", "The request has faults; errors lists them.")
	if len(faults) > maxFaults {
		p.Detail = "The request has faults; errors lists the first " + strconv.Itoa(maxFaults) + " of " + strconv.Itoa(len(faults)) + "."
		faults = faults[:maxFaults]
	}
	p.Errors = faults
	return p
}

// maxFaults bounds an answer: a body of 1 MiB can hold 100,000 unknown fields.
const maxFaults = 1000

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

// descriptions explain the codes at /problems/<name>. Every code in use is
// here, but for <noun>_not_found.
var descriptions = map[string]string{
	"validation_failed":           "422. The body, path, query or a header breaks the schema in /openapi.json. errors lists every fault with its location. Correct the request; a repeat as it is will fail again.",
	"malformed_json":              "400. The body is not one JSON value in UTF-8.",
	"body_too_large":              "413. The body is larger than 1 MiB.",
	"body_unreadable":             "400 or 408. The body ended early or came too slowly.",
	"unsupported_media_type":      "415. A non-empty body needs Content-Type: application/json, UTF-8, not compressed.",
	"unauthorized":                "401. A valid bearer token is needed: signed, not expired, with sub, role and, for restaurants, restaurantId.",
	"forbidden":                   "403. The token is valid, but its bearer may not do this.",
	"not_found":                   "404. There is no such path.",
	"method_not_allowed":          "405. The path exists, the method does not; the header Allow names those that do.",
	"precondition_failed":         "412. The resource has another version than If-Match asks for. Read it again.",
	"too_many_requests":           "429. Wait for the seconds in Retry-After.",
	"internal":                    "500. A fault on our side. It has been logged.",
	"unavailable":                 "503. Wait for the seconds in Retry-After and repeat; a command is safe to repeat with the same Idempotency-Key.",
	"deadline_exceeded":           "503. The answer did not come in time, and the outcome is unknown. A repeat with the same Idempotency-Key is safe.",
	"idempotency_key_reused":      "422. This Idempotency-Key was used for the same operation with another body.",
	"idempotency_in_progress":     "409. The first request with this Idempotency-Key is still running. Wait for the seconds in Retry-After.",
	"read_model_behind":           "503. The read model has not reached the Consistency-Token in time. Wait for the seconds in Retry-After and repeat.",
	"invalid_cursor":              "422. The cursor is not one that this list gave.",
	"invalid_transition":          "409. The order's status, in currentStatus, does not allow this command.",
	"order_not_paid":              "409. The order is not paid yet.",
	"order_already_paid":          "409. The order is paid already.",
	"order_already_assigned":      "409. Another rider has the order.",
	"offer_expired":               "409. The offer is no longer open to this rider.",
	"order_archived":              "410. The order has been closed for too long to be changed; queries still show it.",
	"rider_busy":                  "409. The rider has an order.",
	"rider_not_verified":          "409. Ops have not verified the rider.",
	"rider_offline":               "409. The rider is offline.",
	"rider_suspended":             "409. Ops have suspended the rider.",
	"restaurant_closed":           "409. The restaurant is closed.",
	"item_unavailable":            "409. An item is not available now.",
	"unknown_restaurant":          "422. The body names a restaurant that does not exist.",
	"unknown_item":                "422. The body names an item that is not on the menu.",
	"currency_mismatch":           "422. The items have different currencies.",
	"payment_not_requested":       "409. No payment was requested for the order.",
	"order_closed_for_payment":    "409. The order can no longer be paid.",
	"payment_unsettled":           "409. There is nothing to refund or to resolve.",
	"gateway_refused":             "502. The payment gateway does not take this payment, such as one in a currency that it does not know.",
	"confirmation_required":       "409. So many records need confirmCount to match.",
	"not_configured":              "404. This installation does not have that part switched on.",
	"recorded_at_in_the_future":   "422. The position is from more than 60 s ahead.",
	"upgrade_required":            "426. The path is a websocket; /v1/feed/sse is the same as Server-Sent Events.",
	"bad_handshake":               "400. The websocket handshake is not one of RFC 6455, version 13.",
	"origin_not_allowed":          "403. The page's origin may not open feeds here; TOMATO_ALLOWED_ORIGINS lists those that may.",
	"consistency_token_not_ready": "503. The read model has not reached the Consistency-Token in time. Wait for the seconds in Retry-After.",
}

// describe serves GET /problems/{name}.
func describe(w http.ResponseWriter, r *http.Request) {
	code := strings.ReplaceAll(strings.TrimPrefix(r.URL.Path, "/problems/"), "-", "_")
	text, ok := descriptions[code]
	if noun, is := strings.CutSuffix(code, "_not_found"); !ok && is && domain.ValidID(noun) {
		ok, text = true, "404. There is none with this id, or the caller is no party to it."
	}
	if !ok {
		WriteProblem(w, NewProblem(http.StatusNotFound, "not_found", "There is no such problem."))
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte(title(code) + " (" + code + ")\n" + text + "\n"))
}
