package consumer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/eventlog"
)

// ConsumerStatus is the state of one consumer.
type ConsumerStatus struct {
	Consumer      string            `json:"consumer"`
	Generation    int               `json:"generation,omitempty"`
	Group         string            `json:"group"`
	Error         string            `json:"error,omitempty"`        // why it is not reading; "" if it is
	LastHeartbeat time.Time         `json:"lastHeartbeat,omitzero"` // of its poll loop, which has one at least once a second
	Partitions    []PartitionStatus `json:"partitions"`             // those assigned to this process
}

// PartitionStatus is the state of one consumer in one partition.
type PartitionStatus struct {
	Topic      string    `json:"topic"`
	Partition  int32     `json:"partition"`
	Position   int64     `json:"position"` // the next offset; everything before it is done or parked
	End        int64     `json:"end"`      // of the log, about a second old at most
	LagRecords int64     `json:"lagRecords"`
	LagSeconds float64   `json:"lagSeconds"` // age of the oldest record that is not done
	Retrying   int       `json:"inRetry"`    // parked events that are tried again
	Waiting    int       `json:"waiting"`    // parked events that wait behind an earlier one of their key
	Dead       int       `json:"dead"`       // dead letters
	ParkedKeys int       `json:"parkedKeys"`
	OldestDead time.Time `json:"oldestDead,omitzero"`
	Paused     string    `json:"paused,omitempty"` // why nothing new is handled, until an operator acts
	// Unavailable is the error of the dependency that is being waited for, and
	// UnavailableSince when the longest wait began.
	Unavailable      string    `json:"away,omitempty"`
	UnavailableSince time.Time `json:"awaySince,omitzero"`
	// HandlingSince is when the longest running call of an Each handler began, to about
	// a second. Other consumers do not set it.
	HandlingSince time.Time `json:"handlingSince,omitzero"`
	LastHeartbeat time.Time `json:"lastHeartbeat,omitzero"`
}

// Status returns the state of the consumers of this process, by name. Safe for
// concurrent use.
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
	c := w.parked.Counts()
	w.mu.Lock()
	defer w.mu.Unlock()
	p := PartitionStatus{
		Topic: w.cp.Topic, Partition: w.cp.Partition,
		Position: w.pos.Next, End: max(w.end, w.pos.Next),
		Retrying: c.Retry, Waiting: c.Waiting, Dead: c.Dead, ParkedKeys: c.Keys, OldestDead: c.OldestDead,
		LastHeartbeat: time.Unix(0, w.heartbeat.Load()).UTC(),
	}
	if at := w.longestCallAt.Load(); at > 0 {
		p.HandlingSince = time.Unix(0, at).UTC()
	}
	p.LagRecords = p.End - p.Position
	if p.LagRecords > 0 {
		oldest := w.oldestInWork
		if oldest.IsZero() && len(w.queue) > 0 {
			oldest = w.queue[0].Timestamp
		}
		if oldest.IsZero() {
			oldest = w.behindSince
		}
		if !oldest.IsZero() {
			p.LagSeconds = max(0, time.Since(oldest).Seconds())
		}
	}
	if w.overBudgetErr != nil {
		p.Paused = w.overBudgetErr.Error()
	}
	if x := w.longestWait(); x != nil {
		p.Unavailable, p.UnavailableSince = x.err.Error(), x.since
	}
	return p
}

// How old a heartbeat may be. A worker has none while it waits for a call, which may
// take as long as handlerTimeout.
const (
	loopStoppedAfter   = 15 * time.Second
	workerStoppedAfter = handlerTimeout + loopStoppedAfter
)

// Stopped returns a reason for each consumer of names (or of all consumers, without
// names) that does not run as it should: it is not started, its session failed, its
// loop or the worker of a partition has no heartbeat, a call of its handler does not
// return, or it has waited for a dependency for more than 30 s. No reason means that
// it is ready. A consumer that lags or is paused is not stopped. Safe for concurrent
// use.
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
		case time.Since(c.LastHeartbeat) > r.stoppedAfter(loopStoppedAfter):
			out = append(out, fmt.Sprintf("consumer %s: no heartbeat since %s", c.Consumer, c.LastHeartbeat.Format(time.RFC3339)))
		}
		for _, p := range c.Partitions {
			if time.Since(p.LastHeartbeat) > r.stoppedAfter(workerStoppedAfter) {
				out = append(out, fmt.Sprintf("consumer %s: %s/%d stands still since %s", c.Consumer, p.Topic, p.Partition, p.LastHeartbeat.Format(time.RFC3339)))
			}
			if !p.HandlingSince.IsZero() && time.Since(p.HandlingSince) > r.stoppedAfter(workerStoppedAfter) {
				out = append(out, fmt.Sprintf("consumer %s: %s/%d: a call of its handler does not return since %s", c.Consumer, p.Topic, p.Partition, p.HandlingSince.Format(time.RFC3339)))
			}
			if !p.UnavailableSince.IsZero() && time.Since(p.UnavailableSince) > r.stoppedAfter(unavailableStopped) {
				out = append(out, fmt.Sprintf("consumer %s: %s/%d waits since %s: %s", c.Consumer, p.Topic, p.Partition, p.UnavailableSince.UTC().Format(time.RFC3339), p.Unavailable))
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

// ReadConsumers returns the state of all consumers, whichever process runs them, from
// their checkpoints, their parked events and the ends of the logs. It does not set
// what only the processes know: Paused, Unavailable, HandlingSince and the heartbeats.
// LagSeconds is the age of the last event before the position, while there is a lag.
// It fails with an error of Postgres or Kafka.
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
	var times []*time.Time // event times, in the order of the partitions
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

// OverBudget returns the partitions of a consumer in which so many events are parked that
// its worker handles nothing new, whichever process runs it. It fails with an error of
// Postgres.
func OverBudget(ctx context.Context, db *pgxpool.Pool, c Consumer) (map[eventlog.TopicPartition]bool, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	rows, err := db.Query(ctx, `SELECT topic, partition FROM (
			SELECT topic, partition, count(*) AS parked FROM tomato.parked WHERE consumer = $1 AND generation = $2 GROUP BY topic, partition, key) k
		GROUP BY topic, partition HAVING sum(parked) >= $3 OR max(parked) >= $4`, c.Name, c.Generation, c.Budget, c.KeyBudget)
	if err != nil {
		return nil, fmt.Errorf("read parked events: %w", err)
	}
	over := map[eventlog.TopicPartition]bool{}
	var tp eventlog.TopicPartition
	if _, err = pgx.ForEachRow(rows, []any{&tp.Topic, &tp.Partition}, func() error { over[tp] = true; return nil }); err != nil {
		return nil, fmt.Errorf("read parked events: %w", err)
	}
	return over, nil
}
