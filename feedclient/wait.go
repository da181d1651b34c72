package feedclient

import (
	"errors"
	"net/http"
	"regexp"
	"strconv"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/coder/websocket"
)

// waits are random waits between 0 and a bound that doubles (full jitter): clients whose
// connections ended at the same time do not come back at the same time.
type waits interface {
	NextBackOff() time.Duration
	Reset()
}

func newWaits(first, most time.Duration) waits {
	return &backoff.ExponentialBackOff{ // of the interval it makes a random wait of 0 to 2 intervals
		InitialInterval: first / 2, MaxInterval: most / 2, Multiplier: 2, RandomizationFactor: 1,
	}
}

// tokenError is an error of Options.Token.
type tokenError struct{ err error }

func (e *tokenError) Error() string { return "feedclient: no token: " + e.err.Error() }
func (e *tokenError) Unwrap() error { return e.err }

// mayRetry reports whether a new attempt may succeed after this error, without a change
// of what the caller does. /asyncapi.json says so of each close code.
func (s *session) mayRetry(err error) bool {
	var refused *RefusedError
	if errors.As(err, &refused) {
		switch refused.Status {
		case http.StatusUnauthorized: // the token may have expired on the way; another one is asked for
			return s.unauthorized < 2
		case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
			return true
		}
		return refused.Status >= http.StatusInternalServerError
	}
	var closed *ClosedError
	if errors.As(err, &closed) {
		switch code := websocket.StatusCode(closed.Code); code {
		case websocket.StatusProtocolError, websocket.StatusUnsupportedData, websocket.StatusInvalidFramePayloadData,
			websocket.StatusPolicyViolation, websocket.StatusMessageTooBig:
			return false
		case closeTokenExpired:
			return true
		default:
			return code < 4500 || code > 4999
		}
	}
	return !errors.Is(err, websocket.ErrMessageTooBig) && !errors.Is(err, errNoMessage)
}

// closeTokenExpired asks for a new token. All other codes from 4500 to 4999 ask for a
// change of the client.
const closeTokenExpired = 4500

var advice = regexp.MustCompile(`retry after ([0-9]{1,8}) ms\b`)

// advised returns how long the server asks the client to wait. It is at most an hour.
func advised(err error) time.Duration {
	var wait time.Duration
	var refused *RefusedError
	var closed *ClosedError
	switch {
	case errors.As(err, &refused):
		wait = refused.RetryAfter
	case errors.As(err, &closed):
		if m := advice.FindStringSubmatch(closed.Reason); m != nil {
			ms, _ := strconv.Atoi(m[1]) // up to eight digits
			wait = time.Duration(ms) * time.Millisecond
		}
	}
	return min(wait, time.Hour)
}
