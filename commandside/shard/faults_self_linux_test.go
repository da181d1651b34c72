package shard

import (
	"math"
	"testing"

	"github.com/anishathalye/porcupine"

	"tomato/domain"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

// This test is about the check itself: it must accept a correct history, and reject
// each history in which one answer is wrong.
func TestTheSpecificationSeesALie(t *testing.T) {
	t.Parallel()
	history := func() []*operation {
		var ops []*operation
		o := &object{shown: showAll(nil, nil, nil, nil)}
		ask := func(key string, c domain.Command) {
			op := &operation{object: "x", req: Request{Topic: eventlog.Riders, ID: "x", Actor: domain.SystemActor, Command: c, IdempotencyKey: key}}
			op.call, op.ret = int64(10*len(ops)), int64(10*len(ops)+5)
			o, op.outcome = o.apply(&op.req, modelTime)
			ops = append(ops, op)
		}
		ask("", rider.GoOnline{}) // the rider does not exist
		ask("", rider.Put{RiderID: "x", Name: subjectkeystest.Name("x", "Una")})
		ask("", rider.GoOnline{}) // the rider is not verified
		ask("k", rider.Verify{})
		ask("k", rider.Verify{}) // a repeat
		ask("", rider.Verify{})  // the rider is verified already
		ask("", rider.GoOnline{})
		ask("", rider.ClaimFor{OrderID: "o"})
		ask("", rider.ClaimFor{OrderID: "other"}) // the rider is busy
		return ops
	}
	for _, c := range []struct {
		name string
		lie  func([]*operation)
		want porcupine.CheckResult
	}{
		{"none", func([]*operation) {}, porcupine.Ok},
		{"a stale refusal", func(ops []*operation) { ops[2].call, ops[2].ret = 45, 46 }, porcupine.Illegal},
		{"a refusal that was still right when it was asked for", func(ops []*operation) { ops[2].call, ops[2].ret = 34, 46 }, porcupine.Ok},
		{"a stale state in an answer", func(ops []*operation) { ops[5].outcome.shown = ops[1].outcome.shown }, porcupine.Illegal},
		{"a version twice", func(ops []*operation) { ops[6].outcome.version = 2 }, porcupine.Illegal},
		{"an event that had no effect", func(ops []*operation) { ops[6].outcome.event = "" }, porcupine.Illegal},
		{"the wrong refusal", func(ops []*operation) { ops[8].outcome.code = string(rider.CodeOffline) }, porcupine.Illegal},
		{"201 for what was there", func(ops []*operation) { ops[3].outcome.status = 201 }, porcupine.Illegal},
		{"a repeat that is none", func(ops []*operation) { ops[4].outcome.repeated = false }, porcupine.Illegal},
		{"an unknown outcome that took effect", func(ops []*operation) {
			ops[6].outcome.known, ops[6].ret = false, math.MaxInt64
		}, porcupine.Ok},
		{"an unknown outcome that took effect before it was asked for", func(ops []*operation) {
			ops[6].outcome.known, ops[6].call, ops[6].ret = false, 86, math.MaxInt64
		}, porcupine.Illegal},
	} {
		ops := history()
		c.lie(ops)
		var in []porcupine.Operation
		for _, op := range ops {
			in = append(in, porcupine.Operation{Input: op, Output: &op.outcome, Call: op.call, Return: op.ret})
		}
		if got := porcupine.CheckOperationsTimeout(specification, in, 0); got != c.want {
			t.Errorf("%s: %s", c.name, got)
		}
	}
}
