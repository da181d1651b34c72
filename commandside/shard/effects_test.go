package shard

import (
	"errors"
	"testing"
	"time"

	"tomato/domain"
	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// asPolicy runs a command as a policy does, for an event.
func (o *owned) asPolicy(topic, id string, c domain.Command) (Result, error) {
	return o.owner.local(o.t.Context(), o.shard, &Request{Topic: topic, ID: id, Actor: domain.SystemActor, Command: c, CausationID: "an event"})
}

// A policy that repeats what took effect long ago is answered without a check, also by an
// owner that can confirm nothing any more. A command that this owner has not seen take
// effect is confirmed like every other.
func TestWhatTookEffectNeedsNoCheck(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		snapshotTopics(t, cfg)
		a := newLone(t, cfg).serve()
		a.must(eventlog.Riders, "x", "", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "X")})
		a.must(eventlog.Riders, "x", "", rider.Verify{})
		a.must(eventlog.Riders, "x", "", rider.GoOnline{})
		claimed := a.must(eventlog.Riders, "x", "", rider.ClaimFor{OrderID: "o", Round: 1, Wave: 1}).Rider.Claim
		release := rider.Release{ClaimID: claimed.ID, OrderID: "o"}
		a.must(eventlog.Riders, "x", "", release)

		_, before := a.ends()
		for range 5 {
			if res, err := a.asPolicy(eventlog.Riders, "x", release); err != nil || res.Event != nil || res.Rider.Claim != nil {
				t.Fatalf("a repeat of the release: %+v, %v", res, err)
			}
		}
		if _, after := a.ends(); after != before {
			t.Errorf("%d checks for facts of the past", after-before)
		}
		a.must(eventlog.Riders, "x", "", release) // a request shows the rider's present state
		if _, after := a.ends(); after != before+1 {
			t.Errorf("%d checks for the answer to a request", after-before)
		}

		other := newLone(t, cfg)
		rival := other.newShard(0, other.producer)
		for i := range rival.logs {
			rival.logs[i].rule.Term = a.logs[i].rule.Term
		}
		if err := rival.putFence(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := a.asPolicy(eventlog.Riders, "x", release); err != nil {
			t.Fatalf("behind a fence with a higher term: %v", err)
		}
		// The next owner may have claimed the rider again: this owner can't know of it.
		if _, err := a.asPolicy(eventlog.Riders, "x", rider.Release{ClaimID: claimed.ID + 2, OrderID: "p"}); !errors.Is(err, errNotDecided) {
			t.Fatalf("the release of a claim that it has not seen: %v", err)
		}
		a.endsWith(errDeposed)
	})
}

// What took effect is answered only when the events behind it are acknowledged: if this
// owner is deposed, an append in flight may turn out to be invalid.
func TestWhatTookEffectIsAcknowledgedFirst(t *testing.T) {
	t.Parallel()
	for _, of := range []struct {
		log     int
		topic   string
		state   entry
		command domain.Command
	}{
		{orders, eventlog.Orders, entry{order: &order.State{ID: "o", Version: 8, Status: order.StatusRiderAssigned, RiderID: "x", ClaimID: 4}}, order.Assign{RiderID: "x", ClaimID: 4}},
		{orders, eventlog.Orders, entry{order: &order.State{ID: "o", Version: 2, Status: order.StatusPlaced, PaymentID: "p"}}, order.MarkPaid{PaymentID: "p"}},
		{riders, eventlog.Riders, entry{rider: &rider.State{ID: "o", Version: 5}}, rider.Release{ClaimID: 4}},
		{payments, eventlog.Payments, entry{order: &order.State{ID: "o", Version: 2, Status: order.StatusPlaced}, payment: &payment.State{OrderID: "o", Version: 2, Status: payment.StatusPaid,
			Booked: "p", Attempts: []payment.Attempt{{PaymentID: "p", State: payment.AttemptStateBooked}}}}, payment.RecordCaptured{PaymentID: "p"}},
	} {
		s := newLoop(t)
		l := &s.logs[of.log]
		l.next, l.ordinal, l.seq = 10, 1, 1
		l.inFlight = []*pending{{ordinal: 1, seq: 1, at: time.Now(), own: waiter{call: newCall(Request{Topic: of.topic}), left: 1}}}
		e := s.agg.begin(of.log, "o")
		e.order, e.payment, e.rider = of.state.order, of.state.payment, of.state.rider
		*e.ordinal(of.log) = 1
		c := newCall(Request{Topic: of.topic, ID: "o", Actor: domain.SystemActor, Command: of.command, CausationID: "an event"})
		s.handle(c)
		select {
		case <-c.done:
			t.Fatalf("%s is answered before the append is acknowledged: %+v, %v", of.command.CommandName(), c.res, c.err)
		default:
		}
		s.putAck(ack{log: of.log, ordinal: 1, offset: 10})
		s.takeAcks(t.Context())
		s.handleReleased()
		select {
		case <-c.done:
			if c.err != nil || c.res.Event != nil {
				t.Fatalf("%s: %+v, %v", of.command.CommandName(), c.res, c.err)
			}
		default:
			t.Fatalf("%s is not answered after the acknowledgement", of.command.CommandName())
		}
	}
}
