package simulate

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/sys/unix"
)

const (
	faultsShown  = 20
	rejectsShown = 20
)

// Report is what a run ends with.
type Report struct {
	Run         string  `json:"run"`
	Seed        int64   `json:"seed"`
	Seconds     float64 `json:"seconds"`
	Interrupted bool    `json:"interrupted,omitempty"`

	Dataset     *DatasetReport `json:"dataset,omitempty"`
	Restaurants int            `json:"restaurants"`
	Riders      int            `json:"riders"`
	Customers   int            `json:"customers"`

	Orders       int            `json:"orders"`        // to be placed
	Acknowledged int            `json:"acknowledged"`  // placed with an answer
	Statuses     map[string]int `json:"statuses"`      // by final status
	Payments     map[string]int `json:"payments"`      // by final payment status
	Captured     int64          `json:"captured"`      // minor units that the gateway was made to capture
	Due          int64          `json:"due"`           // minor units of the delivered orders
	Events       int            `json:"events"`        // of the orders
	Commands     int            `json:"commands"`      // on orders, acknowledged
	Latencies    []Latency      `json:"latencies"`     //
	Requests     int64          `json:"requests"`      // attempts
	Retries      int64          `json:"retries"`       // attempts after the first
	NetErrors    int64          `json:"networkErrors"` // attempts without an answer
	Refusals     map[string]int `json:"refusals"`      // by problem code
	Feed         FeedReport     `json:"feed"`

	BrokenPromises int            `json:"broken"` // promises
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

// FeedReport counts over all feeds of the run.
type FeedReport struct {
	Connections int64 `json:"connections"`
	Messages    int64 `json:"messages"`
	Reconnects  int64 `json:"reconnects"`
	Resumed     int64 `json:"resumed"`
	Resets      int64 `json:"resets"`
	ResetMissed int   `json:"resetMissed"` // messages missing where feed:reset announced it
	Locations   int64 `json:"locations"`   // rider:location received
	Foreign     int64 `json:"foreign"`     // to riders, on orders of others
}

// Latency is in milliseconds, as the parties saw it, retries included.
type Latency struct {
	Name  string  `json:"name"`
	Count int     `json:"count"`
	P50Ms float64 `json:"p50Ms"`
	P99Ms float64 `json:"p99Ms"`
	MaxMs float64 `json:"maxMs"`
}

// Broken is the number of broken promises. Above 0 the program exits with 1.
func (r Report) Broken() int { return r.BrokenPromises }

// latency collects durations by name. Safe for concurrent use.
type latency struct {
	mu sync.Mutex
	of map[string][]time.Duration
}

func (l *latency) add(name string, d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = map[string][]time.Duration{}
	}
	l.of[name] = append(l.of[name], d)
}

var latencyNames = []string{"place", "pay_to_order_new", "ready_to_order_available", "accept", "e2e"}

func (l *latency) report() []Latency {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Latency
	for _, name := range latencyNames {
		d := slices.Sorted(slices.Values(l.of[name]))
		if len(d) == 0 {
			continue
		}
		ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
		at := func(q float64) float64 { return ms(d[min(len(d)-1, int(q*float64(len(d))))]) }
		out = append(out, Latency{name, len(d), at(0.50), at(0.99), ms(d[len(d)-1])})
	}
	return out
}

// report sums the run up. Nothing runs any more.
func (s *simulation) report(took time.Duration) Report {
	l := s.ledger
	l.mu.Lock()
	defer l.mu.Unlock()
	rep := Report{
		Run: s.run, Seed: s.opt.Seed, Seconds: took.Seconds(),
		Restaurants: len(s.restaurants), Riders: len(s.riders), Customers: len(s.customers), Orders: len(s.purchases),
		Statuses: map[string]int{}, Payments: map[string]int{}, Latencies: s.latency.report(),
		Requests: s.api.requests.Load(), Retries: s.api.retries.Load(), NetErrors: s.api.networkErrors.Load(),
		Refusals: s.api.refusals,
		Feed: FeedReport{
			Connections: s.feeds.connects.Load(), Messages: s.feeds.messages.Load(), Reconnects: s.feeds.reconnects.Load(),
			Resumed: s.feeds.resumed.Load(), Resets: s.feeds.resets.Load(), Locations: s.feeds.locations.Load(), Foreign: l.foreignMessages.Load(),
		},
		FaultKinds: l.counts, Faults: l.faults[:min(len(l.faults), faultsShown)],
	}
	if d := s.dataset; d != nil {
		rep.Dataset = &DatasetReport{Rows: d.Rows, Accepted: len(d.Deliveries), Rejected: len(d.Rejects), Reasons: d.Reasons(), Rejects: d.Rejects}
	}
	for _, r := range l.orders {
		if r.id == "" {
			rep.Statuses["unknown"]++
			continue
		}
		rep.Acknowledged++
		status, pay := r.final.Status, r.final.PaymentStatus
		if r.judgedReceipts < 0 { // never read back: as last heard
			status, pay = r.status, r.paymentStatus
		}
		rep.Statuses[status]++
		rep.Payments[pay]++
		for _, m := range r.captures {
			rep.Captured += m.amount
		}
		if status == "delivered" {
			rep.Due += r.amount
		}
		rep.Events += r.final.Version
		rep.Commands += len(r.acks)
		rep.Feed.ResetMissed += r.verdict.missedInGap
	}
	if n := len(s.purchases) - len(l.orders); n > 0 {
		rep.Statuses["not_placed"] = n
		if n > 0 {
			rep.FaultKinds[faultUnfinished] += n
			rep.Faults = append(rep.Faults[:min(len(rep.Faults), faultsShown-1)], Fault{faultUnfinished, "", fmt.Sprintf("%d orders were never placed", n)})
		}
	}
	for _, n := range rep.FaultKinds {
		rep.BrokenPromises += n
	}
	return rep
}

// Write prints the report: one JSON object, or lines for people.
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
		p("interrupted: nothing below is complete")
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
	p("commands acknowledged on orders: %d; events: %d", r.Commands, r.Events)
	p("requests: %d, of them retries %d, without answer %d; refusals: %s", r.Requests, r.Retries, r.NetErrors, counts(r.Refusals))
	f := r.Feed
	p("feeds: %d connections, %d messages, %d reconnects (%d resumed, %d reset, %d messages missed by reset)",
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

// progress shows how far a run is: a bar on a terminal, else a line now and then.
type progress struct {
	out   io.Writer
	total int
	bars  *mpb.Progress
	bar   *mpb.Bar
	mu    sync.Mutex
	name  string
}

func newProgress(out io.Writer, total int) *progress {
	p := &progress{out: out, total: total, name: "orders"}
	if f, ok := out.(*os.File); ok {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			p.bars = mpb.New(mpb.WithOutput(out))
			p.bar = p.bars.AddBar(int64(total),
				mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return p.now() }), decor.CountersNoUnit(" %d/%d")),
				mpb.AppendDecorators(decor.Elapsed(decor.ET_STYLE_MMSS)))
		}
	}
	return p
}

func (p *progress) now() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.name
}

func (p *progress) phase(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.name = name
}

func (p *progress) run(ctx context.Context, s *simulation) {
	every := 5 * time.Second
	if p.bar != nil {
		every = 200 * time.Millisecond
	}
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		ended, faults := s.ledger.progressCounts()
		if p.bar != nil {
			p.bar.SetCurrent(min(int64(ended), int64(p.total)-1)) // the last step is done's
			continue
		}
		fmt.Fprintf(p.out, "%s: %d placed, %d ended, of %d; %d messages; %d broken promises\n",
			p.now(), s.placed.Load(), ended, p.total, s.feeds.messages.Load(), faults)
	}
}

func (p *progress) done() {
	if p.bar == nil {
		return
	}
	p.bar.SetTotal(-1, true)
	p.bars.Wait()
}

// ended counts the orders that have their end, as last heard, and the faults.
func (l *ledger) progressCounts() (orders, faults int) {
	l.mu.Lock()
	records := l.orders
	for _, n := range l.counts {
		faults += n
	}
	l.mu.Unlock() // a record's lock is never taken inside the ledger's
	for _, r := range records {
		if r.hasEnded() {
			orders++
		}
	}
	return orders, faults
}
