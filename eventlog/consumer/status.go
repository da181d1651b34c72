package consumer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/eventlog"
)

// ConsumerStatus is how one consumer of this process is doing.
type ConsumerStatus struct {
	Consumer      string            `json:"consumer"`
	Generation    int               `json:"generation,omitempty"`
	Group         string            `json:"group"`
	Error         string            `json:"error,omitempty"`        // why it is not reading, if it is not
	LastHeartbeat time.Time         `json:"lastHeartbeat,omitzero"` // of its poll loop, at least once a second
	Partitions    []PartitionStatus `json:"partitions"`             // those assigned to this process
}

// PartitionStatus is how one consumer is doing in one partition.
type PartitionStatus struct {
	Topic         string    `json:"topic"`
	Partition     int32     `json:"partition"`
	Position      int64     `json:"position"` // the next offset; everything before is done or parked
	End           int64     `json:"end"`      // of the log, at most a second or so old
	LagRecords    int64     `json:"lagRecords"`
	LagSeconds    float64   `json:"lagSeconds"` // age of the oldest record that is not done
	Retrying      int       `json:"inRetry"`    // parked, to be tried again
	Waiting       int       `json:"waiting"`    // queued behind a parked record of their key
	Dead          int       `json:"dead"`
	ParkedKeys    int       `json:"parkedKeys"`
	OldestDead    time.Time `json:"oldestDead,omitzero"`
	Paused        string    `json:"paused,omitempty"` // why nothing new is handled, until an operator acts
	Away          string    `json:"away,omitempty"`   // what is being waited for
	AwaySince     time.Time `json:"awaySince,omitzero"`
	Handling      time.Time `json:"handlingSince,omitzero"` // since when the longest call is under way; to a second, and of Each consumers alone
	LastHeartbeat time.Time `json:"lastHeartbeat,omitzero"`
}

// Status returns how the consumers of this process are doing, by name. Safe
// for concurrent use.
func (r *Runtime) Status() []ConsumerStatus {
	r.state.mu.Lock()
	groups := slices.Clone(r.state.groups)
	r.state.mu.Unlock()
	out := make([]ConsumerStatus, 0, len(groups))
	for _, g := range groups {
		st := ConsumerStatus{Consumer: g.c.Name, Generation: g.c.Generation, Group: g.c.Group(), Partitions: []PartitionStatus{}}
		if ns := g.heartbeat.Load(); ns != 0 {
			st.LastHeartbeat = time.Unix(0, ns).UTC()
		}
		g.mu.Lock()
		errs := []error{g.takeErr, g.err}
		for _, tp := range slices.SortedFunc(maps.Keys(g.lost), eventlog.CompareTopicPartitions) {
			errs = append(errs, g.lost[tp])
		}
		if err := errors.Join(errs...); err != nil {
			st.Error = err.Error()
		}
		ws := make([]*worker, 0, len(g.workers))
		for _, w := range g.workers {
			ws = append(ws, w)
		}
		g.mu.Unlock()
		for _, w := range ws {
			st.Partitions = append(st.Partitions, w.status())
		}
		slices.SortFunc(st.Partitions, func(a, b PartitionStatus) int {
			return eventlog.CompareTopicPartitions(eventlog.TopicPartition{Topic: a.Topic, Partition: a.Partition}, eventlog.TopicPartition{Topic: b.Topic, Partition: b.Partition})
		})
		out = append(out, st)
	}
	slices.SortFunc(out, func(a, b ConsumerStatus) int {
		if d := strings.Compare(a.Consumer, b.Consumer); d != 0 {
			return d
		}
		return a.Generation - b.Generation
	})
	return out
}

func (w *worker) status() PartitionStatus {
	c := w.parked.counts()
	w.mu.Lock()
	defer w.mu.Unlock()
	p := PartitionStatus{
		Topic: w.cp.Topic, Partition: w.cp.Partition,
		Position: w.pos.Next, End: max(w.end, w.pos.Next),
		Retrying: c.retry, Waiting: c.waiting, Dead: c.dead, ParkedKeys: c.keys, OldestDead: c.oldestDead,
		LastHeartbeat: time.Unix(0, w.heartbeat.Load()).UTC(),
	}
	if since := w.calling.Load(); since > 0 {
		p.Handling = time.Unix(0, since).UTC()
	}
	p.LagRecords = p.End - p.Position
	if p.LagRecords > 0 {
		oldest := w.headTime
		if oldest.IsZero() && len(w.queue) > 0 {
			oldest = w.queue[0].Timestamp
		}
		if oldest.IsZero() {
			oldest = w.behind
		}
		if !oldest.IsZero() {
			p.LagSeconds = max(0, time.Since(oldest).Seconds())
		}
	}
	if w.overErr != nil {
		p.Paused = w.overErr.Error()
	}
	if x := w.longestAbsent(); x != nil {
		p.Away, p.AwaySince = x.err.Error(), x.since
	}
	return p
}

// stoppedAfter is how old a heartbeat may be. A worker that handles one call
// may be silent for as long as that call may take.
const (
	loopStoppedAfter   = 15 * time.Second
	workerStoppedAfter = handlerTimeout + loopStoppedAfter
)

// Stopped returns a reason for each consumer of names (all, if none are given)
// that is not running as it should: not started, its loop or a partition's
// worker without heartbeat, or its session failed. Empty means ready. A
// consumer that lags, is paused, or waits for a dependency for a while is not stopped.
func (r *Runtime) Stopped(names ...string) []string {
	var out []string
	seen := map[string]bool{}
	for _, c := range r.Status() {
		seen[c.Consumer] = true
		if len(names) > 0 && !slices.Contains(names, c.Consumer) {
			continue
		}
		switch {
		case c.Error != "":
			out = append(out, fmt.Sprintf("consumer %s: %s", c.Consumer, c.Error))
		case time.Since(c.LastHeartbeat) > r.stillAfter(loopStoppedAfter):
			out = append(out, fmt.Sprintf("consumer %s: no heartbeat since %s", c.Consumer, c.LastHeartbeat.Format(time.RFC3339)))
		}
		for _, p := range c.Partitions {
			if time.Since(p.LastHeartbeat) > r.stillAfter(workerStoppedAfter) {
				out = append(out, fmt.Sprintf("consumer %s: %s/%d stands still since %s", c.Consumer, p.Topic, p.Partition, p.LastHeartbeat.Format(time.RFC3339)))
			}
			if !p.Handling.IsZero() && time.Since(p.Handling) > r.stillAfter(workerStoppedAfter) {
				out = append(out, fmt.Sprintf("consumer %s: %s/%d: a call of its handler does not return since %s", c.Consumer, p.Topic, p.Partition, p.Handling.Format(time.RFC3339)))
			}
			if !p.AwaySince.IsZero() && time.Since(p.AwaySince) > r.stillAfter(awayStopped) {
				out = append(out, fmt.Sprintf("consumer %s: %s/%d waits since %s: %s", c.Consumer, p.Topic, p.Partition, p.AwaySince.UTC().Format(time.RFC3339), p.Away))
			}
		}
	}
	for _, n := range names {
		if !seen[n] {
			out = append(out, fmt.Sprintf("consumer %s: not started", n))
		}
	}
	return out
}

// runtimeMetrics are the counters; what can be read off Status is collected
// from there.
type runtimeMetrics struct {
	r                       *Runtime
	voids, retries, deads   *prometheus.CounterVec
	handledTotal, skipped   *prometheus.CounterVec
	breakers                *prometheus.GaugeVec
	lagRecords, lagSeconds  *prometheus.Desc
	inRetry, waiting, dead_ *prometheus.Desc
	keys, oldest, paused    *prometheus.Desc
}

func newRuntimeMetrics(r *Runtime) *runtimeMetrics {
	part := []string{"consumer", "generation", "topic", "partition"}
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, part, nil)
	}
	m := &runtimeMetrics{
		r:            r,
		voids:        prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tomato_void_records_total", Help: "Invalid records that consumers skipped, each time one is read, by reason."}, []string{"topic", "reason"}),
		retries:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tomato_consumer_retries_total", Help: "Failed attempts after which a record was parked for retry."}, []string{"consumer"}),
		deads:        prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tomato_consumer_dead_letters_total", Help: "Records that became dead letters."}, []string{"consumer", "class"}),
		handledTotal: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tomato_consumer_events_total", Help: "Events that have taken effect on their first attempt."}, []string{"consumer"}),
		skipped:      prometheus.NewCounterVec(prometheus.CounterOpts{Name: "tomato_consumer_skipped_total", Help: "Records of telemetry topics that could not be read, or whose handler failed, and were passed over."}, []string{"consumer", "topic"}),
		breakers: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "tomato_breaker_state",
			Help: "Of what consumers depend on: 0 it answers, 1 one asks whether it is back, 2 it is away."}, []string{"dependency"}),
		lagRecords: desc("tomato_consumer_lag_records", "Records of the partition that are neither done nor parked."),
		lagSeconds: desc("tomato_consumer_lag_seconds", "Age of the oldest such record."),
		inRetry:    desc("tomato_consumer_in_retry", "Parked records that will be tried again."),
		waiting:    desc("tomato_consumer_waiting", "Records queued behind a parked one of their key."),
		dead_:      desc("tomato_consumer_dead", "Dead letters."),
		keys:       desc("tomato_consumer_parked_keys", "Keys with parked records."),
		oldest:     desc("tomato_consumer_oldest_dead_seconds", "Age of the oldest dead letter; 0 if there is none."),
		paused:     desc("tomato_consumer_paused", "1 while the partition is paused because too much is parked."),
	}
	if r.Registry != nil {
		m.voids, m.retries = register(r.Registry, m.voids), register(r.Registry, m.retries)
		m.breakers, m.skipped = register(r.Registry, m.breakers), register(r.Registry, m.skipped)
		m.deads, m.handledTotal = register(r.Registry, m.deads), register(r.Registry, m.handledTotal)
		_ = register(r.Registry, prometheus.Collector(m))
	}
	return m
}

// register returns what is registered under that name: another part of the
// process may count into the same series.
func register[C prometheus.Collector](reg prometheus.Registerer, c C) C {
	var already prometheus.AlreadyRegisteredError
	if err := reg.Register(c); errors.As(err, &already) {
		if existing, ok := already.ExistingCollector.(C); ok {
			return existing
		}
	}
	return c
}

func (m *runtimeMetrics) void(topic, reason string)   { m.voids.WithLabelValues(topic, reason).Inc() }
func (m *runtimeMetrics) retry(consumer string)       { m.retries.WithLabelValues(consumer).Inc() }
func (m *runtimeMetrics) dead(consumer, class string) { m.deads.WithLabelValues(consumer, class).Inc() }
func (m *runtimeMetrics) handled(consumer string, n int) {
	m.handledTotal.WithLabelValues(consumer).Add(float64(n))
}

// Describe implements prometheus.Collector.
func (m *runtimeMetrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{m.lagRecords, m.lagSeconds, m.inRetry, m.waiting, m.dead_, m.keys, m.oldest, m.paused} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *runtimeMetrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range m.r.Status() {
		for _, p := range c.Partitions {
			labels := []string{c.Consumer, strconv.Itoa(c.Generation), p.Topic, strconv.Itoa(int(p.Partition))}
			put := func(d *prometheus.Desc, v float64) {
				ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
			}
			put(m.lagRecords, float64(p.LagRecords))
			put(m.lagSeconds, p.LagSeconds)
			put(m.inRetry, float64(p.Retrying))
			put(m.waiting, float64(p.Waiting))
			put(m.dead_, float64(p.Dead))
			put(m.keys, float64(p.ParkedKeys))
			age := 0.0
			if !p.OldestDead.IsZero() {
				age = time.Since(p.OldestDead).Seconds()
			}
			put(m.oldest, age)
			paused := 0.0
			if p.Paused != "" {
				paused = 1
			}
			put(m.paused, paused)
		}
	}
}

// ReadConsumers returns how all consumers are doing, whichever process runs
// them: from their checkpoints, what is parked, and the ends of the logs. Paused,
// Away and heartbeats are known to the processes alone. LagSeconds is the age
// of the last event before the position, while there is a lag.
func ReadConsumers(ctx context.Context, db *pgxpool.Pool, adm *kadm.Client) ([]ConsumerStatus, error) {
	rows, err := db.Query(ctx, `SELECT c.consumer, c.generation, c.topic, c.partition, c.next_offset, c.event_time,
			count(p.id) FILTER (WHERE p.state = 'retry'), count(p.id) FILTER (WHERE p.state = 'waiting'),
			count(p.id) FILTER (WHERE p.state = 'dead'), count(DISTINCT p.key), min(p.last_failed_at) FILTER (WHERE p.state = 'dead')
		FROM tomato.checkpoints c LEFT JOIN tomato.parked p USING (consumer, generation, topic, partition)
		GROUP BY c.consumer, c.generation, c.topic, c.partition ORDER BY 1, 2, 3, 4`)
	if err != nil {
		return nil, fmt.Errorf("read consumers: %w", err)
	}
	var out []ConsumerStatus
	topics := map[string]bool{}
	var c ConsumerStatus
	var p PartitionStatus
	var at, oldest *time.Time
	var times []*time.Time // of each partition in turn
	_, err = pgx.ForEachRow(rows, []any{&c.Consumer, &c.Generation, &p.Topic, &p.Partition, &p.Position, &at, &p.Retrying, &p.Waiting, &p.Dead, &p.ParkedKeys, &oldest}, func() error {
		if n := len(out); n == 0 || out[n-1].Consumer != c.Consumer || out[n-1].Generation != c.Generation {
			out = append(out, ConsumerStatus{Consumer: c.Consumer, Generation: c.Generation, Group: Consumer{Name: c.Consumer, Generation: c.Generation}.Group()})
		}
		part := p
		if oldest != nil {
			part.OldestDead = oldest.UTC()
		}
		times = append(times, at)
		at = nil
		last := &out[len(out)-1]
		last.Partitions = append(last.Partitions, part)
		topics[p.Topic] = true
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read consumers: %w", err)
	}
	if len(out) == 0 {
		return out, nil
	}
	ends, err := adm.ListEndOffsets(ctx, slices.Collect(maps.Keys(topics))...)
	if err != nil {
		return nil, fmt.Errorf("read consumers: end offsets: %w", err)
	}
	n := 0
	for i := range out {
		for j := range out[i].Partitions {
			p, at := &out[i].Partitions[j], times[n]
			n++
			p.End = p.Position
			if o, ok := ends.Lookup(p.Topic, p.Partition); ok && o.Err == nil {
				p.End = max(p.Position, o.Offset)
			}
			p.LagRecords = p.End - p.Position
			if p.LagRecords > 0 && at != nil {
				p.LagSeconds = max(0, time.Since(*at).Seconds())
			}
		}
	}
	return out, nil
}
