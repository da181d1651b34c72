package commandside

import (
	"context"
	"encoding/json"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/httpapi"
)

// maxClockSkew is how far a device's clock may be ahead of ours.
const maxClockSkew = time.Minute

const futureMessage = "is more than 60 s ahead"

type locationInput struct {
	ID   httpapi.ID `path:"id"`
	Body struct {
		Location   domain.Point `json:"location"`
		RecordedAt time.Time    `json:"recordedAt,omitzero" doc:"Default: when it is received."`
	}
}

type acceptedOutput struct{ Status int }

type locationsInput struct {
	Body struct {
		Positions []positionReport `json:"positions" minItems:"1" maxItems:"10000"`
	}
}

type positionReport struct {
	RiderID    httpapi.ID   `json:"riderId"`
	Location   domain.Point `json:"location"`
	RecordedAt time.Time    `json:"recordedAt,omitzero"`
}

type rejectedPosition struct {
	Index int    `json:"index"`
	Code  string `json:"code"`
}

type locationsOutput struct {
	Status int
	Body   struct {
		Accepted int                `json:"accepted"`
		Rejected []rejectedPosition `json:"rejected"`
	}
}

func (s *Side) locationRoutes(api *httpapi.API) {
	one := operation("PUT", "/v1/riders/{id}/location", "putRiderLocation", "Where the rider is")
	one.DefaultStatus = 202
	httpapi.Register(api, one, []domain.Role{domain.Rider}, func(ctx context.Context, in *locationInput) (*acceptedOutput, error) {
		if in.Body.RecordedAt.After(time.Now().Add(maxClockSkew)) {
			return nil, httpapi.Invalid(httpapi.FieldError{Location: "body.recordedAt", Message: futureMessage})
		}
		if httpapi.Actor(ctx).Sub != string(in.ID) { // 404 goes before 403
			known, err := s.knownRiders(ctx, []string{string(in.ID)})
			if err == nil && known[string(in.ID)] {
				err = domain.Refuse(domain.Forbidden, "a rider may do this only for themselves")
			} else if err == nil {
				err = domain.Refuse(domain.NotFound, "no such rider")
			}
			return nil, problem(eventlog.Riders, err)
		}
		if err := s.ReportLocation(ctx, string(in.ID), in.Body.Location, in.Body.RecordedAt); err != nil {
			return nil, problem(eventlog.Riders, err)
		}
		return &acceptedOutput{Status: 202}, nil
	})
	bulk := operation("POST", "/v1/rider-locations", "postRiderLocations", "Where many riders are")
	bulk.DefaultStatus = 202
	httpapi.Register(api, bulk, []domain.Role{domain.Ops}, s.bulkLocations)
}

// ReportLocation keeps the position of a registered rider. A zero recordedAt means now.
// The error is a refusal or an error of the shard; after shard.ErrUnavailable the
// caller may try again.
func (s *Side) ReportLocation(ctx context.Context, riderID string, at domain.Point, recordedAt time.Time) error {
	known, err := s.knownRiders(ctx, []string{riderID})
	if err != nil {
		return err
	}
	if !known[riderID] {
		return domain.Refuse(domain.NotFound, "no such rider")
	}
	return s.producePositions(ctx, []rider.Position{{RiderID: riderID, Location: at, RecordedAt: recordedAt}})
}

func (s *Side) bulkLocations(ctx context.Context, in *locationsInput) (*locationsOutput, error) {
	ids := make([]string, len(in.Body.Positions))
	for i, p := range in.Body.Positions {
		ids[i] = string(p.RiderID)
	}
	known, err := s.knownRiders(ctx, ids)
	if err != nil {
		return nil, problem(eventlog.Riders, err)
	}
	out := &locationsOutput{Status: 202}
	out.Body.Rejected = []rejectedPosition{}
	latest := time.Now().Add(maxClockSkew)
	var accepted []rider.Position
	for i, p := range in.Body.Positions {
		switch {
		case !known[ids[i]]:
			out.Body.Rejected = append(out.Body.Rejected, rejectedPosition{i, "rider_not_found"})
		case p.RecordedAt.After(latest):
			out.Body.Rejected = append(out.Body.Rejected, rejectedPosition{i, "recorded_at_in_future"})
		default:
			accepted = append(accepted, rider.Position{RiderID: ids[i], Location: p.Location, RecordedAt: p.RecordedAt})
		}
	}
	if err := s.producePositions(ctx, accepted); err != nil {
		return nil, problem(eventlog.Riders, err)
	}
	out.Body.Accepted = len(accepted)
	return out, nil
}

// knownRiders reports for each id whether it is the id of a registered rider. It asks
// each shard of these riders once.
func (s *Side) knownRiders(ctx context.Context, ids []string) (map[string]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, s.CommandDeadline)
	defer cancel()
	byShard := map[int32][]string{}
	for _, id := range ids {
		p := eventlog.PartitionFor(id, s.Partitions)
		byShard[p] = append(byShard[p], id)
	}
	answers := make(chan map[string]bool, len(byShard))
	g, ctx := errgroup.WithContext(ctx)
	for _, ids := range byShard {
		g.Go(func() error {
			res, err := s.Commands.Execute(ctx, shard.Request{Topic: eventlog.Riders, ID: ids[0], Actor: domain.SystemActor, Command: shard.Known{RiderIDs: ids}})
			if err != nil {
				return err
			}
			m := map[string]bool{}
			for i, id := range ids {
				m[id] = res.Known[i]
			}
			answers <- m
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	known := make(map[string]bool, len(ids))
	for range byShard {
		for id, ok := range <-answers {
			known[id] = ok
		}
	}
	return known, nil
}

func (s *Side) producePositions(ctx context.Context, positions []rider.Position) error {
	if len(positions) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, s.CommandDeadline)
	defer cancel()
	now := domain.Time(time.Now())
	records := make([]*kgo.Record, len(positions))
	for i, p := range positions {
		p.RecordedAt = domain.Time(p.RecordedAt)
		if p.RecordedAt.IsZero() {
			p.RecordedAt = now
		}
		data, err := json.Marshal(p)
		if err != nil {
			return err
		}
		e := eventlog.Event{ID: uuid.NewString(), Source: "/tomato/commandside", Type: rider.PositionType, Time: now, Subject: p.RiderID, Data: data}
		records[i] = e.NewRecord(eventlog.RiderLocations, eventlog.PartitionFor(p.RiderID, s.Partitions))
	}
	if err := s.produce(ctx, records...); err != nil {
		return notAppended(err)
	}
	return nil
}
