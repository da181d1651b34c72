package simulate

import (
	"context"
	"net/http"
	"time"
)

const (
	positionsPerRequest = 500
	positionsEvery      = time.Minute
)

// sendPositions sends the home positions of all riders, and reports whether all
// requests succeeded. The position of the stale rider is sent the first time only,
// and says that it was recorded ten minutes ago.
func (s *simulation) sendPositions(ctx context.Context, first bool) bool {
	ok := true
	var batch []object
	flush := func() {
		if len(batch) == 0 {
			return
		}
		a, sent := s.must(ctx, s.town.operatorToken, http.MethodPost, "/v1/rider-locations", object{"positions": batch})
		var result struct {
			Accepted int `json:"accepted"`
			Rejected []struct {
				Index int    `json:"index"`
				Code  string `json:"code"`
			} `json:"rejected"`
		}
		if sent {
			if err := a.decode(&result); err != nil || len(result.Rejected) > 0 {
				s.ledger.fault(faultUnexpectedAnswer, "", "sending positions: %s", a)
			}
		}
		ok = ok && sent
		batch = batch[:0]
	}
	for _, d := range s.town.riders {
		p := object{"riderId": d.id, "location": d.home}
		if d.ineligible == riderStale {
			if !first {
				continue
			}
			p["recordedAt"] = time.Now().Add(-10 * time.Minute).UTC().Format(time.RFC3339)
		}
		if batch = append(batch, p); len(batch) == positionsPerRequest {
			flush()
		}
	}
	flush()
	return ok
}

// keepPositions sends the positions every minute until ctx ends, because a rider
// whose position is older than five minutes gets no offers.
func (s *simulation) keepPositions(ctx context.Context) {
	t := time.NewTicker(positionsEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
			s.sendPositions(ctx, false)
		}
	}
}
