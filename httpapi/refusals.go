package httpapi

import (
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// refusalsLogged is how many refused requests are logged each second, after as many at
// once as refusalsBurst. The others are counted, and the next line says how many they
// were.
const (
	refusalsLogged = 1
	refusalsBurst  = 20
)

// sampler lets some log lines through, and counts the others. It is safe for concurrent
// use.
type sampler struct {
	limit   *rate.Limiter
	skipped atomic.Int64
}

func newSampler() *sampler { return &sampler{limit: rate.NewLimiter(refusalsLogged, refusalsBurst)} }

// refusals samples the log lines of refused requests. Those without a token have a sampler
// of their own, so that a flood of them does not hide what authenticated callers try.
type refusals struct{ unauthenticated, forbidden *sampler }

func newRefusals() *refusals { return &refusals{newSampler(), newSampler()} }

// logRefusal logs a request that was refused with 401 or 403: who asked, from where, and
// for which operation. The token is not logged, and neither is the path, which may contain
// ids. The reason of a 401 is in its answer.
func (a *API) logRefusal(r *http.Request, status int) {
	s := a.refusals.unauthenticated
	if status == http.StatusForbidden {
		s = a.refusals.forbidden
	}
	if !s.limit.AllowN(time.Now(), 1) {
		s.skipped.Add(1)
		return
	}
	attributes := []any{"status", status, "method", method(r), "route", route(r), "remote", r.RemoteAddr, "notLogged", s.skipped.Swap(0)}
	if status == http.StatusForbidden && a.auth != nil {
		text, _ := StreamToken(r) // of any request: others have it in the header Authorization
		if token, err := a.auth.Authenticate(text); err == nil {
			attributes = append(attributes, "role", token.Actor.Role, "sub", token.Actor.Sub)
		}
	}
	a.log.Warn("a request was refused", attributes...)
}
