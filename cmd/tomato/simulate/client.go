package simulate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"tomato/domain"
)

const (
	maxInFlight     = 64
	requestTimeout  = 30 * time.Second // one attempt
	maxRetryWait    = 5 * time.Second
	maxAnswerBytes  = 16 << 20
	tokenTTL        = 24 * time.Hour
	maxIdleConns    = 2 * maxInFlight
	maxRetryBackoff = time.Second
)

// client calls one or several instances of Tomato over HTTP. It retries a call that
// got no definite answer until patience is over. A retry is safe, because it has the
// same Idempotency-Key. Safe for concurrent use.
type client struct {
	urls      []string
	http      *http.Client
	secret    []byte
	issuer    string
	audience  string
	patience  time.Duration // longest time for one call with its retries
	slots     chan struct{} // bounds the requests that are under way
	transport *http.Transport

	requests, retries, networkErrors atomic.Int64
	next                             atomic.Uint32 // modulo len(urls), the index of the URL that is tried first

	mu       sync.Mutex
	statuses map[int]int    // counts by HTTP status
	refusals map[string]int // counts by problem code
}

func newClient(o Options) *client {
	t := &http.Transport{
		MaxIdleConns: maxIdleConns, MaxIdleConnsPerHost: maxIdleConns, IdleConnTimeout: time.Minute,
		DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
	}
	c := &client{
		http: &http.Client{Transport: t}, transport: t, secret: []byte(o.JWTSecret),
		issuer: o.JWTIssuer, audience: o.JWTAudience, patience: o.RetryFor,
		slots: make(chan struct{}, maxInFlight), statuses: map[int]int{}, refusals: map[string]int{},
	}
	for u := range strings.SplitSeq(o.URL, ",") {
		c.urls = append(c.urls, strings.TrimRight(strings.TrimSpace(u), "/"))
	}
	return c
}

// token signs the token of a party.
func (c *client) token(role domain.Role, sub, restaurantID string) (string, error) {
	claims := jwt.MapClaims{"sub": sub, "role": string(role), "exp": time.Now().Add(tokenTTL).Unix()}
	if restaurantID != "" {
		claims["restaurantId"] = restaurantID
	}
	if c.issuer != "" {
		claims["iss"] = c.issuer
	}
	if c.audience != "" {
		claims["aud"] = c.audience
	}
	return jwt.NewWithClaims(jwt.SigningMethodHS256, claims).SignedString(c.secret)
}

// call is one request to be made.
type call struct {
	token       string
	method      string
	path        string
	body        any    // nil for none
	key         string // Idempotency-Key
	consistency string // Consistency-Token to wait for
}

// answer is a definite answer of Tomato. A network error is not one, and neither is
// an answer that asks for a retry.
type answer struct {
	status  int
	body    []byte
	etag    string
	token   string // Consistency-Token
	problem struct {
		Code          string `json:"code"`
		Detail        string `json:"detail"`
		CurrentStatus string `json:"currentStatus"`
	}
	took time.Duration // of the call, with all retries
}

// ok reports whether the call succeeded.
func (a answer) ok() bool { return a.status >= 200 && a.status < 300 }

func (a answer) String() string {
	if a.problem.Code != "" {
		return fmt.Sprintf("%d %s: %s", a.status, a.problem.Code, a.problem.Detail)
	}
	return fmt.Sprintf("%d %s", a.status, clip(string(a.body)))
}

// order decodes an order in the body, whatever the status is.
func (a answer) order() (orderView, error) {
	var v orderView
	err := json.Unmarshal(a.body, &v)
	return v, err
}

// decode decodes the body of a successful answer.
func (a answer) decode(v any) error {
	if !a.ok() {
		return errors.New(a.String())
	}
	if err := json.Unmarshal(a.body, v); err != nil {
		return fmt.Errorf("%w in %s", err, clip(strings.TrimSpace(string(a.body))))
	}
	return nil
}

// errUnanswered means that patience ended without a definite answer. The call may or
// may not have had its effect.
var errUnanswered = errors.New("no definite answer")

// do sends the call until it gets a definite answer. After 429, 503, 409
// idempotency_in_progress or a network error it tries again with the same
// Idempotency-Key. Before that it waits for the time in Retry-After, or for a pause
// that grows with each attempt and is partly random.
func (c *client) do(ctx context.Context, q call) (answer, error) {
	var body []byte
	if q.body != nil {
		var err error
		if body, err = json.Marshal(q.body); err != nil {
			return answer{}, err
		}
	}
	start := time.Now()
	first := c.next.Load()
	var last string
	for attempt := 0; ; attempt++ {
		if attempt > 0 {
			c.retries.Add(1)
		}
		a, retryAfter, err := c.once(ctx, q, body, c.urls[(int(first)+attempt)%len(c.urls)])
		switch {
		case ctx.Err() != nil:
			return answer{}, ctx.Err()
		case err != nil:
			c.networkErrors.Add(1)
			c.next.CompareAndSwap(first, first+1)
			last = err.Error()
		case a.status == http.StatusTooManyRequests || a.status == http.StatusServiceUnavailable ||
			a.status == http.StatusConflict && a.problem.Code == "idempotency_in_progress":
			last = a.String()
		default:
			a.took = time.Since(start)
			return a, nil
		}
		wait := retryAfter
		if wait == 0 {
			wait = min(10*time.Millisecond<<min(attempt, 10), maxRetryBackoff)
		}
		// The random part spreads the next attempts of callers that were refused at
		// the same time.
		wait = min(wait, maxRetryWait) + rand.N(wait/4+time.Millisecond)
		if time.Since(start)+wait > c.patience {
			return answer{}, fmt.Errorf("%w to %s %s in %s: %s", errUnanswered, q.method, q.path, c.patience, last)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return answer{}, ctx.Err()
		}
	}
}

// once makes one attempt at a call.
func (c *client) once(ctx context.Context, q call, body []byte, base string) (a answer, retryAfter time.Duration, err error) {
	select {
	case c.slots <- struct{}{}:
		defer func() { <-c.slots }()
	case <-ctx.Done():
		return a, 0, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var rd io.Reader
	if body != nil {
		rd = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, q.method, base+q.path, rd)
	if err != nil {
		return a, 0, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if q.token != "" {
		req.Header.Set("Authorization", "Bearer "+q.token)
	}
	if q.key != "" {
		req.Header.Set("Idempotency-Key", q.key)
	}
	if q.consistency != "" {
		req.Header.Set("Consistency-Token", q.consistency)
	}
	c.requests.Add(1)
	res, err := c.http.Do(req)
	if err != nil {
		return a, 0, err
	}
	defer res.Body.Close()
	a.body, err = io.ReadAll(io.LimitReader(res.Body, maxAnswerBytes))
	if err != nil {
		return a, 0, err
	}
	a.status, a.etag, a.token = res.StatusCode, res.Header.Get("ETag"), res.Header.Get("Consistency-Token")
	if !a.ok() {
		_ = json.Unmarshal(a.body, &a.problem) // the code stays empty when the body is not a problem
	}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil && s >= 0 {
		retryAfter = time.Duration(s) * time.Second
	}
	c.mu.Lock()
	c.statuses[a.status]++
	if a.problem.Code != "" {
		c.refusals[a.problem.Code]++
	}
	c.mu.Unlock()
	return a, retryAfter, nil
}
