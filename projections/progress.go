package projections

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"tomato/eventlog"
)

// Phase is a part of a rebuild.
type Phase string

// The phases of a rebuild, in order.
const (
	PhaseFilling     Phase = "filling"      // folding the log in memory up to the targets
	PhaseIndexing    Phase = "indexing"     // creating the indexes
	PhaseCatchingUp  Phase = "catching_up"  // folding the events that came meanwhile, up to the positions of the serving generation
	PhaseVerifying   Phase = "verifying"    // comparing the rows with those that serve
	PhaseHandingOver Phase = "handing_over" // the processes that project take the generation over, and bring it up to date
	PhaseSwitched    Phase = "switched"     // the new generation serves
)

// Progress is how far a rebuild is. All targets of a phase are known when it begins and do
// not change, and Done and Share never decrease within a phase.
type Progress struct {
	Generation
	Phase Phase `json:"phase"`
	// Done and Target count records in PhaseFilling, PhaseCatchingUp and PhaseHandingOver,
	// indexes in PhaseIndexing, and rows in PhaseVerifying. In PhaseFilling a record counts
	// when it is folded; its row is written some thousands of records later.
	Done   int64   `json:"done"`
	Target int64   `json:"target"`
	Share  float64 `json:"share"` // 0 to 1; that of the indexes also counts those that are being created
	// PerSecond is the average since the phase began in this process, and SecondsLeft
	// what is left at this rate; 0 while it is not known.
	PerSecond   float64             `json:"perSecond"`
	SecondsLeft float64             `json:"secondsLeft"`
	Partitions  []PartitionProgress `json:"partitions,omitempty"` // in the phases that count records
}

// PartitionProgress is how far a rebuild is in one partition: offsets.
type PartitionProgress struct {
	Topic       string  `json:"topic"`
	Partition   int32   `json:"partition"`
	Done        int64   `json:"done"`
	Target      int64   `json:"target"`
	PerSecond   float64 `json:"perSecond"`
	SecondsLeft float64 `json:"secondsLeft"`
}

// tellInterval is the pause between two reports.
const tellInterval = 500 * time.Millisecond

// meter has how far a rebuild is, and reports it. Safe for concurrent use.
type meter struct {
	g      Generation
	report func(Progress) // nil: nobody wants to know
	moves  atomic.Int64   // raised whenever something was done
	told   sync.Mutex     // held during a report

	mu       sync.Mutex // guards what follows
	phase    Phase
	began    time.Time
	parts    map[eventlog.TopicPartition]*measured
	whole    measured // of the phases without partitions
	underWay float64  // PhaseIndexing: of indexes that are being created, in indexes
	share    float64  // the largest that was told
}

// measured is one thing that is done up to its target.
type measured struct {
	first, done, target int64
	seen                bool // first is known
}

func newMeter(g Generation, report func(Progress)) *meter { return &meter{g: g, report: report} }

// begin begins a phase with targets, and reports it.
func (m *meter) begin(phase Phase, targets map[eventlog.TopicPartition]int64) {
	m.start(phase, targets, 0)
}

// beginCount begins a phase that counts up to target.
func (m *meter) beginCount(phase Phase, target int64) { m.start(phase, nil, target) }

// beginIndexes begins PhaseIndexing with so many indexes.
func (m *meter) beginIndexes(n int) { m.start(PhaseIndexing, nil, int64(n)) }

func (m *meter) start(phase Phase, targets map[eventlog.TopicPartition]int64, target int64) {
	if m.phase != "" { // only the goroutine of the rebuild sets it
		m.tell()
	}
	m.mu.Lock()
	m.phase, m.began, m.underWay, m.share = phase, time.Now(), 0, 0
	m.whole = measured{target: target, seen: true}
	m.parts = make(map[eventlog.TopicPartition]*measured, len(targets))
	for tp, t := range targets {
		m.parts[tp] = &measured{target: t}
	}
	m.mu.Unlock()
	m.moves.Add(1)
	m.tell()
}

// reached notes the position that a partition has reached.
func (m *meter) reached(tp eventlog.TopicPartition, next int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.parts[tp]
	if p == nil {
		return
	}
	if next = min(next, p.target); !p.seen {
		p.first, p.done, p.seen = next, next, true
	}
	if next > p.done {
		p.done = next
		m.moves.Add(1)
	}
}

// count notes that n more rows are compared.
func (m *meter) count(n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.whole.done = min(m.whole.done+n, m.whole.target)
	m.moves.Add(1)
}

// indexing notes how many indexes Postgres has made of those that it is creating.
func (m *meter) indexing(underWay float64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if underWay != m.underWay {
		m.moves.Add(1)
	}
	m.underWay = underWay
}

// indexMade notes that one more index is there.
func (m *meter) indexMade() {
	m.count(1)
	m.tell()
}

// tell reports the progress.
func (m *meter) tell() {
	if m.report == nil {
		return
	}
	m.told.Lock()
	defer m.told.Unlock()
	m.report(m.progress())
}

func (m *meter) progress() Progress {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := Progress{Generation: m.g, Phase: m.phase, Done: m.whole.done, Target: m.whole.target}
	elapsed := time.Since(m.began).Seconds()
	var moved int64
	for tp, x := range m.parts {
		part := PartitionProgress{Topic: tp.Topic, Partition: tp.Partition, Done: x.done, Target: x.target}
		part.PerSecond, part.SecondsLeft = speed(float64(x.done-x.first), float64(x.target-x.done), elapsed)
		p.Partitions = append(p.Partitions, part)
		p.Done, p.Target, moved = p.Done+x.done, p.Target+x.target, moved+x.done-x.first
	}
	slices.SortFunc(p.Partitions, func(a, b PartitionProgress) int {
		return eventlog.CompareTopicPartitions(eventlog.TopicPartition{Topic: a.Topic, Partition: a.Partition}, eventlog.TopicPartition{Topic: b.Topic, Partition: b.Partition})
	})
	done := float64(p.Done)
	if len(m.parts) == 0 {
		done += m.underWay
		p.PerSecond, p.SecondsLeft = speed(done, float64(p.Target)-done, elapsed)
	} else {
		p.PerSecond, p.SecondsLeft = speed(float64(moved), float64(p.Target-p.Done), elapsed)
	}
	if p.Share = 1; p.Target > 0 {
		p.Share = min(1, done/float64(p.Target))
	}
	m.share = max(m.share, p.Share)
	p.Share = m.share
	return p
}

// speed returns how much is done per second, and how many seconds the rest takes. Both
// are 0 while nothing is done.
func speed(done, left, elapsed float64) (perSecond, secondsLeft float64) {
	if done <= 0 || elapsed <= 0 {
		return 0, 0
	}
	return done / elapsed, left / (done / elapsed)
}

// run reports the progress from time to time until stop is called.
func (m *meter) run() (stop func()) { return m.every(m.tell) }

// every calls fn from time to time until stop is called.
func (m *meter) every(fn func()) (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(tellInterval)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				fn()
			case <-end:
				return
			}
		}
	}()
	return func() { close(end); <-done }
}
