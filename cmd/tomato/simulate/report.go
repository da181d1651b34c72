package simulate

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

const (
	faultsShown  = 20
	rejectsShown = 20
)

// Report is the result of a run.
type Report struct {
	Run         string  `json:"run"`
	Seed        int64   `json:"seed"`
	Seconds     float64 `json:"seconds"`
	Interrupted bool    `json:"interrupted,omitempty"`

	Dataset     *DatasetReport `json:"dataset,omitempty"`
	Restaurants int            `json:"restaurants"`
	Riders      int            `json:"riders"`
	Customers   int            `json:"customers"`

	Orders       int            `json:"orders"`       // how many orders were to be placed
	Acknowledged int            `json:"acknowledged"` // how many orders were acknowledged
	Statuses     map[string]int `json:"statuses"`     // number of orders, by final status
	Payments     map[string]int `json:"payments"`     // number of orders, by final payment status
	Captured     int64          `json:"captured"`     // what the gateway was made to capture, in minor units
	Due          int64          `json:"due"`          // the sum of the delivered orders' amounts, in minor units
	Events       int            `json:"events"`       // number of events of all orders
	Commands     int            `json:"commands"`     // number of acknowledged commands on orders
	Latencies    []Latency      `json:"latencies"`
	Requests     int64          `json:"requests"`      // attempts
	Retries      int64          `json:"retries"`       // attempts after the first
	NetErrors    int64          `json:"networkErrors"` // attempts without an answer
	Refusals     map[string]int `json:"refusals"`      // by problem code
	Feed         FeedReport     `json:"feed"`

	BrokenPromises int            `json:"broken"`
	FaultKinds     map[string]int `json:"faultKinds,omitempty"`
	Faults         []Fault        `json:"faults,omitempty"` // the first 20
}

// DatasetReport accounts for every row of the file: Rows = Accepted + Rejected.
type DatasetReport struct {
	Rows     int            `json:"rows"`
	Accepted int            `json:"accepted"`
	Rejected int            `json:"rejected"`
	Reasons  map[string]int `json:"reasons,omitempty"`
	Rejects  []Reject       `json:"rejects,omitempty"` // all of them
}

// FeedReport has the totals of all feeds of the run.
type FeedReport struct {
	Connections int64 `json:"connections"`
	Messages    int64 `json:"messages"`
	Reconnects  int64 `json:"reconnects"`
	Resumed     int64 `json:"resumed"`
	Resets      int64 `json:"resets"`
	ResetMissed int   `json:"resetMissed"` // messages that are missing after a feed:reset
	Locations   int64 `json:"locations"`   // rider:location messages
	Foreign     int64 `json:"foreign"`     // messages to riders about orders of other runs
}

// Latency says how long the parties had to wait for something, retries included.
type Latency struct {
	Name  string  `json:"name"`
	Count int     `json:"count"`
	P50Ms float64 `json:"p50Ms"`
	P99Ms float64 `json:"p99Ms"`
	MaxMs float64 `json:"maxMs"`
}

// Broken returns the number of broken promises. If it is not 0, `tomato simulate`
// exits with 1.
func (r Report) Broken() int { return r.BrokenPromises }

// report summarises the run. It must be called after all goroutines of the run have
// ended.
func (s *simulation) report(took time.Duration) Report {
	l := s.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	rep := Report{
		Run: s.run, Seed: s.opt.Seed, Seconds: took.Seconds(),
		Restaurants: len(s.town.restaurants), Riders: len(s.town.riders), Customers: len(s.town.customers), Orders: len(s.town.purchases),
		Statuses: map[string]int{}, Payments: map[string]int{}, Latencies: s.latency.report(),
		Requests: s.api.requests.Load(), Retries: s.api.retries.Load(), NetErrors: s.api.networkErrors.Load(),
		Refusals: s.api.refusals,
		Feed: FeedReport{
			Connections: s.feeds.connects.Load(), Messages: s.feeds.messages.Load(), Reconnects: s.feeds.reconnects.Load(),
			Resumed: s.feeds.resumed.Load(), Resets: s.feeds.resets.Load(), Locations: s.feeds.locations.Load(), Foreign: l.foreignMessages.Load(),
		},
		FaultKinds: l.counts, Faults: l.faults[:min(len(l.faults), faultsShown)],
	}
	if d := s.town.dataset; d != nil {
		rep.Dataset = &DatasetReport{Rows: d.Rows, Accepted: len(d.Deliveries), Rejected: len(d.Rejects), Reasons: d.Reasons(), Rejects: d.Rejects}
	}
	for _, e := range l.orders {
		if e.id == "" {
			rep.Statuses["unknown"]++
			continue
		}
		rep.Acknowledged++
		status, pay := e.final.Status, e.final.PaymentStatus
		if e.judgedReceipts < 0 { // it was never judged: the last status that was received has to do
			status, pay = e.status, e.paymentStatus
		}
		rep.Statuses[status]++
		rep.Payments[pay]++
		for _, c := range e.captures {
			rep.Captured += c.amount
		}
		if status == "delivered" {
			rep.Due += e.amount
		}
		rep.Events += e.final.Version
		rep.Commands += len(e.acks)
		rep.Feed.ResetMissed += e.verdict.missedInGap
	}
	if n := len(s.town.purchases) - len(l.orders); n > 0 {
		rep.Statuses["not_placed"] = n
		rep.FaultKinds[faultUnfinished] += n
		rep.Faults = append(rep.Faults[:min(len(rep.Faults), faultsShown-1)], Fault{faultUnfinished, "", fmt.Sprintf("%d orders were never placed", n)})
	}
	for _, n := range rep.FaultKinds {
		rep.BrokenPromises += n
	}
	return rep
}

// Write prints the report to w: as one JSON object on one line if asJSON is true, else
// as text.
func (r Report) Write(w io.Writer, asJSON bool) error {
	if asJSON {
		b, err := json.Marshal(r)
		if err != nil {
			return err
		}
		_, err = w.Write(append(b, '\n'))
		return err
	}
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("run %s, seed %d, %.1f s: %d restaurants, %d riders, %d customers", r.Run, r.Seed, r.Seconds, r.Restaurants, r.Riders, r.Customers)
	if r.Interrupted {
		p("the run was interrupted: the numbers below are incomplete")
	}
	if d := r.Dataset; d != nil {
		p("dataset: %d rows, %d accepted, %d rejected (%s)", d.Rows, d.Accepted, d.Rejected, counts(d.Reasons))
		for i, x := range d.Rejects {
			if i == rejectsShown {
				p("  … %d more (--json lists all)", len(d.Rejects)-i)
				break
			}
			p("  line %d: %s %s", x.Line, x.Reason, x.Detail)
		}
	}
	p("orders: %d of %d acknowledged: %s", r.Acknowledged, r.Orders, counts(r.Statuses))
	p("payments: %s; captured %.2f, due %.2f", counts(r.Payments), float64(r.Captured)/100, float64(r.Due)/100)
	p("acknowledged commands on orders: %d; events of the orders: %d", r.Commands, r.Events)
	p("requests: %d, of which %d were retries and %d got no answer; refusals: %s", r.Requests, r.Retries, r.NetErrors, counts(r.Refusals))
	f := r.Feed
	p("feeds: %d connections, %d messages, %d reconnects (%d resumed, %d reset, %d messages missing after a reset)",
		f.Connections, f.Messages, f.Reconnects, f.Resumed, f.Resets, f.ResetMissed)
	for _, l := range r.Latencies {
		p("%-26s %7d   p50 %9.1f ms   p99 %9.1f ms   max %9.1f ms", l.Name, l.Count, l.P50Ms, l.P99Ms, l.MaxMs)
	}
	if r.BrokenPromises == 0 {
		p("broken promises: none")
	} else {
		p("broken promises: %d (%s)", r.BrokenPromises, counts(r.FaultKinds))
		for _, x := range r.Faults {
			p("  %s %s: %s", x.Kind, x.Order, x.Detail)
		}
		if r.BrokenPromises > len(r.Faults) {
			p("  … %d more", r.BrokenPromises-len(r.Faults))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// counts returns the counts as text, sorted by name.
func counts(m map[string]int) string {
	if len(m) == 0 {
		return "none"
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, m[k]))
	}
	return strings.Join(parts, ", ")
}
