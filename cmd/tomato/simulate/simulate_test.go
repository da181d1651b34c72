package simulate

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func play(t *testing.T, f *fake, o Options) Report {
	t.Helper()
	o.URL, o.JWTSecret, o.Progress = f.srv.URL, fakeSecret, io.Discard
	if o.Out == nil {
		o.Out = io.Discard
	}
	if o.Orders == 0 {
		o.Orders = 120
	}
	if o.Riders == 0 {
		o.Riders = 12
	}
	if o.Timeout == 0 {
		o.Timeout = 20 * time.Second
	}
	o.webhookPatience, o.feedPatience = 200*time.Millisecond, 2*time.Second
	rep, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return rep
}

func TestARunAgainstATruthfulServerBreaksNothing(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	rng := rand.New(rand.NewPCG(1, 1))
	f.busy = func(string) bool { return rng.IntN(20) == 0 }
	var out bytes.Buffer
	rep := play(t, f, Options{Orders: 300, Seed: 7, Out: &out})
	t.Log("\n" + out.String())
	if rep.Broken() != 0 {
		t.Errorf("%d broken promises of a server that keeps all of them", rep.Broken())
	}
	if rep.Acknowledged != 300 || rep.Statuses["delivered"] < 200 || rep.Statuses["rejected"] == 0 || rep.Statuses["cancelled"] == 0 {
		t.Errorf("acknowledged %d, %v", rep.Acknowledged, rep.Statuses)
	}
	if rep.Retries == 0 || rep.Feed.Resumed == 0 {
		t.Errorf("retries %d, resumed %d: neither was tried", rep.Retries, rep.Feed.Resumed)
	}
}

func TestTheReportIsOneJSONObject(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	rep := play(t, newFake(t), Options{Orders: 5, JSON: true, Out: &out})
	var got Report
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if got.Run != rep.Run || got.Acknowledged != 5 || strings.Count(out.String(), "\n") != 1 {
		t.Errorf("%s", out.String())
	}
}

func TestMessagesMissingAfterAResetAreNotLost(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	f.reset = true
	rep := play(t, f, Options{Orders: 200, Seed: 3})
	if rep.Feed.Resets == 0 {
		t.Fatal("no reset was tried")
	}
	if rep.Broken() != 0 {
		t.Errorf("broken %v %+v", rep.FaultKinds, rep.Faults)
	}
}

func TestEachLieOfAServerIsFound(t *testing.T) {
	t.Parallel()
	once := func(event string, of int) func(string, string, object) int {
		done := false
		return func(_, e string, v object) int {
			if e != event || done || e == "order:update" && v["version"] == nil {
				return 1
			}
			done = true
			return of
		}
	}
	for name, tc := range map[string]struct {
		lie  func(*fake)
		kind string
	}{
		"order:new lost":            {func(f *fake) { f.copies = once("order:new", 0) }, faultLostMessage},
		"order:new twice":           {func(f *fake) { f.copies = once("order:new", 2) }, faultDuplicateMessage},
		"order:update lost":         {func(f *fake) { f.copies = once("order:update", 0) }, faultLostMessage},
		"order:update twice":        {func(f *fake) { f.copies = once("order:update", 2) }, faultDuplicateMessage},
		"order:available lost":      {func(f *fake) { f.copies = once("order:available", 0) }, faultLostMessage},
		"order:taken twice":         {func(f *fake) { f.copies = once("order:taken", 2) }, faultDuplicateMessage},
		"order:rider_assigned lost": {func(f *fake) { f.copies = once("order:rider_assigned", 0) }, faultLostMessage},
		"event lost": {func(f *fake) {
			lost := false
			f.keep = func(_ *fakeOrder, typ string, _ object) bool {
				lie := typ == "ORDER_ACCEPTED" && !lost
				lost = lost || lie
				return !lie
			}
		}, faultStaleRead},
		"no refund": {func(f *fake) { f.noRefund = true }, faultMoney},
		"two win":   {func(f *fake) { f.twoWin = true }, faultTwoRiders},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			tc.lie(f)
			rep := play(t, f, Options{Orders: 60, Riders: 6, Seed: 11, Timeout: 1500 * time.Millisecond})
			if rep.FaultKinds[tc.kind] == 0 {
				t.Errorf("not found as %s: %v %+v", tc.kind, rep.FaultKinds, rep.Faults)
			}
		})
	}
}
