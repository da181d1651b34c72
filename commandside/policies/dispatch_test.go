package policies

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"time"

	"tomato/commandside/shard"
	"tomato/domain"
	"tomato/domain/nearby"
	"tomato/domain/order"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
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
	waiting    []nearby.WaitingOrder
	candidates [][][]nearby.Rider // per call
	err        error
	asked      [][]nearby.Search
	wakes      int
	incomplete bool // the read model is behind
}

func (s *search) Nearest(_ context.Context, searches []nearby.Search, _ time.Duration, _ eventlog.Token, _ time.Duration) ([][]nearby.Rider, bool, error) {
	s.asked = append(s.asked, searches)
	if s.err != nil {
		return nil, false, s.err
	}
	found := s.candidates[0]
	s.candidates = s.candidates[1:]
	return found, !s.incomplete, nil
}

func (s *search) Passed(context.Context, eventlog.Token) error {
	s.wakes++
	return s.err
}

func (s *search) Waiting(context.Context, []string, []int, time.Duration, eventlog.Token, time.Duration) ([]nearby.WaitingOrder, error) {
	return s.waiting, s.err
}

// newDispatch returns the consumer over an empty log.
func newDispatch(t *testing.T, o *oneOrder, s *search) consumer.Consumer {
	t.Helper()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
	p := &Policies{Config: Config{OfferRadii: []int{1000, 2000}, OfferLimit: 5, OfferTTL: time.Minute, PositionMaxAge: time.Minute, CommandDeadline: time.Second},
		Commands: o, Search: s, Partitions: 1, Log: slog.New(slog.DiscardHandler)}
	p.Client = eventlogtest.Client(t, cfg)
	return p.Dispatch()
}

// Once the first fresh position was noted before the batch that it wakes had
// succeeded: the repeat took it for a second one, and nobody was woken.
func TestAWakeUpThatFailedIsRepeated(t *testing.T) {
	t.Parallel()
	o := &oneOrder{state: order.State{ID: "o", Version: 6, Status: order.StatusReadyForRider, Round: 1, Wave: 1, WaveOpen: true}}
	s := &search{err: errors.New("no read model"), waiting: []nearby.WaitingOrder{{OrderID: "o", RiderID: "r", DistanceMeters: 7}}}
	c := newDispatch(t, o, s)
	data, err := json.Marshal(rider.Position{RiderID: "r", RecordedAt: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	events := []eventlog.Event{{Topic: eventlog.RiderLocations, Type: rider.PositionType, Subject: "r", Data: data}}
	if err := c.Batch(t.Context(), events); !errors.Is(err, eventlog.ErrUnavailable) {
		t.Fatalf("a search without its read model: %v", err)
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
	if !errors.Is(err, eventlog.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
}

// A wave that finds nobody is skipped, the last is recorded with nobody, and
// after it only riders who were not asked are looked for before dispatch gives up.
func TestWavesWidenAndEnd(t *testing.T) {
	t.Parallel()
	ready := eventlog.Event{Type: "ORDER_READY_FOR_RIDER", Subject: "o", Version: 5}
	o := &oneOrder{state: order.State{ID: "o", Version: 5, Status: order.StatusReadyForRider, Round: 1}}
	s := &search{candidates: [][][]nearby.Rider{{nil}, {nil}}}
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
	s.candidates = [][][]nearby.Rider{{nil}}
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

// A record of a foreign type on rider-locations is no order's event: dispatch
// would ask for an order that is not there, again and again.
func TestWhatIsNoPositionWakesNobody(t *testing.T) {
	t.Parallel()
	o := &oneOrder{}
	s := &search{}
	c := newDispatch(t, o, s)
	err := c.Batch(t.Context(), []eventlog.Event{
		{Topic: eventlog.RiderLocations, Type: "ORDER_READY_FOR_RIDER", Subject: "o", Version: 5, Data: []byte(`{}`)},
		{Topic: eventlog.RiderLocations, Type: "RIDER_ONLINE", Subject: "r", Data: []byte(`{}`)},
		{Topic: eventlog.RiderLocations, Type: rider.PositionType, Subject: "r", Data: []byte(`{`)},
		{Topic: eventlog.RiderLocations, Type: rider.PositionType, Subject: "r", Data: []byte(`{"riderId":"r","recordedAt":"9999-01-01T00:00:00Z","location":{"type":"Point","coordinates":[1,1]}}`)},
	})
	if err != nil || s.wakes != 0 || len(s.asked) != 0 {
		t.Fatalf("%d wake-ups, %d searches, %v", s.wakes, len(s.asked), err)
	}
}

// A search that did not see every rider gives no order up, but not for ever.
func TestAnIncompleteSearchGivesNoOrderUp(t *testing.T) {
	t.Parallel()
	o := &oneOrder{state: order.State{ID: "o", Version: 7, Status: order.StatusReadyForRider, Round: 1, Wave: 2}}
	s := &search{incomplete: true}
	c := newDispatch(t, o, s)
	for wave := 3; ; wave++ {
		s.candidates = [][][]nearby.Rider{{nil}}
		if err := c.Batch(t.Context(), []eventlog.Event{{Topic: eventlog.Orders, Type: "OFFERS_EXPIRED", Subject: "o", Version: 7}}); err != nil {
			t.Fatal(err)
		}
		command := o.got[len(o.got)-1]
		if _, ok := command.(order.Exhaust); ok {
			if wave != 5 {
				t.Fatalf("given up at wave %d", wave)
			}
			break
		}
		if offer, ok := command.(order.OfferWave); !ok || offer.Wave != wave || len(offer.Riders) != 0 {
			t.Fatalf("wave %d: %+v", wave, command)
		}
		o.state.Wave = wave
	}
	// Waves that offered somebody do not count: riders of the partition that was not
	// seen have not been asked.
	o.state.Wave, o.state.Offers, s.candidates = 6, []order.Offer{{RiderID: "r", Wave: 6, State: order.OfferStateEnded}}, [][][]nearby.Rider{{nil}}
	if err := c.Batch(t.Context(), []eventlog.Event{{Topic: eventlog.Orders, Type: "OFFERS_EXPIRED", Subject: "o", Version: 7}}); err != nil {
		t.Fatal(err)
	}
	if offer, ok := o.got[len(o.got)-1].(order.OfferWave); !ok || offer.Wave != 7 {
		t.Fatalf("after a late wave that offered somebody: %+v", o.got[len(o.got)-1])
	}
	o.state.Wave, o.state.Offers, s.incomplete, s.candidates = 2, nil, false, [][][]nearby.Rider{{nil}}
	if err := c.Batch(t.Context(), []eventlog.Event{{Topic: eventlog.Orders, Type: "OFFERS_EXPIRED", Subject: "o", Version: 7}}); err != nil {
		t.Fatal(err)
	}
	if _, ok := o.got[len(o.got)-1].(order.Exhaust); !ok {
		t.Fatalf("a complete search: %+v", o.got[len(o.got)-1])
	}
}
