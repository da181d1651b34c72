package feed

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/httpapi"
)

// locationSender reports the positions that a rider sends over one websocket. At most one
// report is under way and one position waits for it, the newest: while the broker is slow,
// the connection goes on reading operations, and positions that were replaced meanwhile are
// not reported.
type locationSender struct {
	feed    *Feed
	session *session
	limit   *rate.Limiter // used by the connection's reader alone
	running *sync.WaitGroup

	mu   sync.Mutex // guards what follows
	next *position
	busy bool // a goroutine reports
}

// position is where a rider was when the operation was read.
type position struct {
	at       domain.Point
	received time.Time
}

// take checks the operation and returns without waiting for the report. If the report
// fails, the connection is sent feed:error.
func (l *locationSender) take(ctx context.Context, o op) *httpapi.Problem {
	if l.session.actor.Role != domain.Rider {
		return httpapi.NewProblem(http.StatusForbidden, "forbidden", "Only riders report a location.")
	}
	if l.feed.Locations == nil {
		return httpapi.NewProblem(http.StatusNotFound, "not_configured", "This instance takes no locations.")
	}
	if !l.limit.Allow() {
		return httpapi.NewProblem(http.StatusTooManyRequests, "too_many_requests", "Too many locations.")
	}
	if len(o.Location) == 0 {
		return invalidOp("location is needed.")
	}
	p := &position{received: time.Now()}
	if err := json.Unmarshal(o.Location, &p.at); err != nil {
		return invalidOp("location is a GeoJSON Point: longitude -180 to 180, latitude -90 to 90.")
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.next = p
	if !l.busy {
		l.busy = true
		// The last position is reported although the connection ends meanwhile.
		l.running.Go(func() { l.run(context.WithoutCancel(ctx)) })
	}
	return nil
}

func (l *locationSender) run(ctx context.Context) {
	for {
		l.mu.Lock()
		p := l.next
		l.next, l.busy = nil, p != nil
		l.mu.Unlock()
		if p == nil {
			return
		}
		if problem := l.report(ctx, p); problem != nil {
			l.session.fail("", problem)
		}
	}
}

func (l *locationSender) report(ctx context.Context, p *position) *httpapi.Problem {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	err := l.feed.Locations.ReportLocation(ctx, l.session.actor.Sub, p.at, p.received)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, eventlog.ErrUnavailable):
		return httpapi.Unavailable("unavailable", "The location cannot be taken now.", time.Second)
	}
	problem := httpapi.FromError("rider", err)
	if problem.Status == http.StatusInternalServerError {
		l.feed.log().Error("a location could not be taken", "err", err)
	}
	return problem
}
