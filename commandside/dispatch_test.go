package commandside

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"time"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/order"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// oneOrder answers looks with a state, and keeps the other commands.
type oneOrder struct {
	state order.State
	got   []domain.Command
}

func (o *oneOrder) Execute(_ context.Context, r shard.Request) (shard.Result, error) {
	if _, ok := r.Command.(shard.Look); !ok {
		o.got = append(o.got, r.Command)
	}
	return shard.Result{Order: &o.state}, nil
}

// search finds what it is told to.
type search struct {
	waiting    []WaitingOrder
	candidates [][][]Candidate // per call
	err        error
	asked      [][]Search
	wakes      int
}

func (s *search) Nearest(_ context.Context, searches []Search, _ time.Duration, _ eventlog.Token) ([][]Candidate, error) {
	s.asked = append(s.asked, searches)
	if s.err != nil {
		return nil, s.err
	}
	found := s.candidates[0]
	s.candidates = s.candidates[1:]
	return found, nil
}

func (s *search) Waiting(context.Context, []string, []int, time.Duration, eventlog.Token) ([]WaitingOrder, error) {
	s.wakes++
	return s.waiting, s.err
}

// newDispatch returns the consumer over an empty log.
func newDispatch(t *testing.T, o *oneOrder, s *search) eventlog.Consumer {
	t.Helper()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
	side := &Side{Config: Config{OfferRadii: []int{1000, 2000}, OfferLimit: 5, OfferTTL: time.Minute, PositionMaxAge: time.Minute, CommandDeadline: time.Second},
		Commands: o, Search: s, Partitions: 1, Log: slog.New(slog.DiscardHandler)}
	side.Producer = eventlogtest.Client(t, cfg)
	return side.Dispatch()
}

// Once the first fresh position was noted before the batch that it wakes had
// succeeded: the repeat took it for a second one, and nobody was woken.
func TestAWakeUpThatFailedIsRepeated(t *testing.T) {
	t.Parallel()
	o := &oneOrder{state: order.State{ID: "o", Version: 6, Status: order.StatusReadyForRider, Round: 1, Wave: 1, WaveOpen: true}}
	s := &search{err: errors.New("away"), waiting: []WaitingOrder{{OrderID: "o", RiderID: "r", DistanceMeters: 7}}}
	c := newDispatch(t, o, s)
	data, err := json.Marshal(Position{RiderID: "r", RecordedAt: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	events := []eventlog.Event{{Type: "RIDER_LOCATION", Subject: "r", Data: data}}
	if err := c.Batch(t.Context(), events); !errors.Is(err, eventlog.ErrAway) {
		t.Fatalf("a search that is away: %v", err)
	}
	s.err = nil
	if err := c.Batch(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	offer, ok := o.got[0].(order.OfferWave)
	if len(o.got) != 1 || !ok || offer.Wave != 1 || len(offer.Riders) != 1 || offer.Riders[0].RiderID != "r" {
		t.Fatalf("commands %+v", o.got)
	}
	if err := c.Batch(t.Context(), events); err != nil || s.wakes != 2 {
		t.Fatalf("a position that is not the first woke again: %d, %v", s.wakes, err)
	}
}

// An owner that was deposed without noticing shows an older order than the
// event: dispatch asks again instead of passing the order over.
func TestAnAnswerOlderThanItsEventIsNotBelieved(t *testing.T) {
	t.Parallel()
	o := &oneOrder{state: order.State{ID: "o", Version: 6, Status: order.StatusReadyForRider, Round: 1, Wave: 1, WaveOpen: true}}
	c := newDispatch(t, o, &search{})
	err := c.Batch(t.Context(), []eventlog.Event{{Type: "OFFERS_EXPIRED", Subject: "o", Version: 7}})
	if !errors.Is(err, eventlog.ErrAway) {
		t.Fatalf("got %v", err)
	}
}

// A wave that finds nobody is skipped, the last is recorded with nobody, and
// after it only riders who were not asked are looked for before dispatch gives up.
func TestWavesWidenAndEnd(t *testing.T) {
	t.Parallel()
	ready := eventlog.Event{Type: "ORDER_READY_FOR_RIDER", Subject: "o", Version: 5}
	o := &oneOrder{state: order.State{ID: "o", Version: 5, Status: order.StatusReadyForRider, Round: 1}}
	s := &search{candidates: [][][]Candidate{{nil}, {nil}}}
	c := newDispatch(t, o, s)
	if err := c.Batch(t.Context(), []eventlog.Event{ready}); err != nil {
		t.Fatal(err)
	}
	if len(s.asked) != 2 || s.asked[0][0].RadiusMeters != 1000 || s.asked[1][0].RadiusMeters != 2000 {
		t.Fatalf("searches %+v", s.asked)
	}
	if offer, ok := o.got[0].(order.OfferWave); !ok || offer.Wave != 2 || len(offer.Riders) != 0 {
		t.Fatalf("the last wave: %+v", o.got)
	}
	o.state.Version, o.state.Wave = 7, 2
	o.state.Offers = []order.Offer{{RiderID: "asked", Wave: 2, State: order.OfferStateEnded}}
	s.candidates = [][][]Candidate{{nil}}
	if err := c.Batch(t.Context(), []eventlog.Event{{Type: "OFFERS_EXPIRED", Subject: "o", Version: 7}}); err != nil {
		t.Fatal(err)
	}
	if last := s.asked[2][0]; last.RadiusMeters != 2000 || len(last.Without) != 1 || last.Without[0] != "asked" {
		t.Fatalf("the search before giving up: %+v", last)
	}
	if _, ok := o.got[1].(order.Exhaust); !ok {
		t.Fatalf("then: %+v", o.got[1])
	}
}
