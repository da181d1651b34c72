package httpapi

import (
	"errors"
	"io"
	"mime"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

const (
	maxBodyBytes    = 1 << 20
	bodyReadTimeout = 10 * time.Second
	firstBodyBytes  = 1 << 10 // the first buffer for a body; most bodies fit into it

	// How long the server waits for the rest of a body that nobody reads, before it
	// closes the connection.
	unreadBodyTimeout = time.Second

	// The limits for callers without a token: the memory of all their bodies together,
	// and how long one body may take to arrive.
	strangersBytes       = 32 << 20
	strangersReadTimeout = 5 * time.Second
)

// budget bounds the bytes that the bodies of a group of callers have at one time. It is
// safe for concurrent use.
type budget struct {
	limit int64
	held  atomic.Int64
}

func newBudget(limit int64) *budget { return &budget{limit: limit} }

// take takes n bytes, or reports false if that would exceed the limit.
func (b *budget) take(n int64) bool {
	if b.held.Add(n) <= b.limit {
		return true
	}
	b.held.Add(-n)
	return false
}

// hold is the part of a budget that one request has taken.
type hold struct {
	of *budget // nil: no limit
	n  int64
}

// grow takes more of the budget until the hold has n bytes. It reports false if the
// budget does not have so much.
func (h *hold) grow(n int64) bool {
	if h.of == nil {
		return true
	}
	if !h.of.take(n - h.n) {
		return false
	}
	h.n = n
	return true
}

// release gives everything back.
func (h *hold) release() {
	if h.of != nil {
		h.of.held.Add(-h.n)
		h.n = 0
	}
}

// Refuse answers with a problem before the request's body has been read. If there is a
// body, the connection is closed. Otherwise the server would read the body before it
// sends the answer, however long the body takes to arrive.
func Refuse(w http.ResponseWriter, r *http.Request, p *Problem) {
	leaveBody(w, r)
	WriteProblem(w, p)
}

// leaveBody makes the server close the connection after the answer, if the request has
// a body. The server still reads up to 256 KiB of the body before that, and would wait
// for ever for a body that does not arrive. So leaveBody sets a deadline for reading.
func leaveBody(w http.ResponseWriter, r *http.Request) {
	if r.ContentLength != 0 {
		w.Header().Set("Connection", "close")
		_ = http.NewResponseController(w).SetReadDeadline(time.Now().Add(unreadBodyTimeout)) // the writers of tests have no deadlines
	}
}

// read returns the body, or nil if there is none. Its buffer grows with the bytes that
// arrive, not with the length that the header announces, and is taken from the budget
// of held.
func (in *request) read(w http.ResponseWriter, r *http.Request, held *hold) ([]byte, *Problem) {
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return nil, nil
	}
	refuse := func(p *Problem) ([]byte, *Problem) {
		leaveBody(w, r)
		return nil, p
	}
	tooLarge := func() ([]byte, *Problem) {
		return refuse(NewProblem(http.StatusRequestEntityTooLarge, "body_too_large", "The body is larger than "+strconv.FormatInt(in.maxBytes, 10)+" bytes."))
	}
	known := r.ContentLength > 0
	limit := in.maxBytes + 1 // one byte more than allowed shows that the body is too large
	if known {
		if in.schema != nil && !isJSON(r.Header) {
			return refuse(unsupported())
		}
		if limit = r.ContentLength; limit > in.maxBytes {
			return tooLarge()
		}
	}
	timeout := bodyReadTimeout
	if held.of != nil {
		timeout = strangersReadTimeout
	}
	// The writers of tests have no deadlines; the error is ignored.
	control := http.NewResponseController(w)
	_ = control.SetReadDeadline(time.Now().Add(timeout))
	var b []byte
	var err error
	for err == nil && int64(len(b)) < limit {
		if len(b) == cap(b) {
			size := min(max(2*int64(cap(b)), firstBodyBytes), limit)
			if !held.grow(size) {
				return refuse(Unavailable("unavailable", "Too many bodies of callers without a token are arriving now.", time.Second))
			}
			b = append(make([]byte, 0, size), b...)
		}
		var n int
		n, err = r.Body.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
	}
	switch {
	case int64(len(b)) > in.maxBytes:
		return tooLarge()
	case err == nil || err == io.EOF && (!known || int64(len(b)) == limit):
	default:
		if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			return refuse(NewProblem(http.StatusRequestTimeout, "body_unreadable", "The body came too slowly."))
		}
		return refuse(NewProblem(http.StatusBadRequest, "body_unreadable", "The body ended early."))
	}
	_ = control.SetReadDeadline(time.Time{})
	if len(b) > 0 && in.schema != nil && !isJSON(r.Header) {
		return nil, unsupported()
	}
	return b, nil
}

func unsupported() *Problem {
	return NewProblem(http.StatusUnsupportedMediaType, "unsupported_media_type", "A body needs Content-Type: application/json, in UTF-8 and without Content-Encoding.")
}

func isJSON(h http.Header) bool {
	if e := h.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return false
	}
	ct := h.Get("Content-Type")
	if ct == "application/json" {
		return true
	}
	mediaType, params, err := mime.ParseMediaType(ct)
	charset, given := params["charset"]
	return err == nil && mediaType == "application/json" && (!given || strings.EqualFold(charset, "utf-8"))
}
