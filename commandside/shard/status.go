package shard

import (
	"context"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"tomato/eventlog"
)

// This file owns the status of shards, for operators and as metrics.

// Status is the state of one shard as this instance knows it.
type Status struct {
	Shard          int32            `json:"shard"`
	State          string           `json:"state" enum:"serving,opening,elsewhere,unknown"`
	Owner          string           `json:"owner,omitempty"` // name of the instance
	URL            string           `json:"url,omitempty"`
	Term           int64            `json:"term,omitempty"`            // of its claim on orders
	Epoch          int              `json:"epoch,omitempty"`           // event-schema epoch of the owner's build
	Terms          map[string]int64 `json:"terms,omitempty"`           // by topic; this and all fields but Error only if the shard is served here
	Offsets        map[string]int64 `json:"offsets,omitempty"`         // by topic: the expected offset of the next append
	Queue          int              `json:"queue"`                     // commands that wait
	InFlight       int              `json:"inFlight"`                  // appends that are not acknowledged
	Aggregates     int              `json:"aggregates"`                // in memory; an order and its payment are one
	Unsaved        int              `json:"unsaved"`                   // of these, the ones that have changed since the last snapshot
	Saving         bool             `json:"-"`                         // a snapshot is being written
	SavedAt        time.Time        `json:"savedAt,omitzero"`          // when this owner committed its last snapshot
	InvalidRecords int64            `json:"voidRecords"`               // read since the take-over began
	Replayed       int64            `json:"replayedEvents"`            // valid records that the take-over read after the snapshot
	TakenOverAt    time.Time        `json:"takenOverAt,omitzero"`      // when the shard began to serve
	TookSeconds    float64          `json:"takeOverSeconds,omitempty"` // from being assigned to serving
	Error          string           `json:"error,omitempty"`           // why the last try to open the shard here failed
}

// Status returns the status of all shards, by number. It waits until the loop of each
// shard that is served here answers, or ctx ends.
func (s *Shards) Status(ctx context.Context) []Status {
	all := make([]Status, s.Partitions)
	for p := range s.Partitions {
		all[p] = s.statusOf(ctx, p)
	}
	return all
}

func (s *Shards) statusOf(ctx context.Context, p int32) Status {
	s.mu.Lock()
	sh, a := s.serving[p], s.assigned[p]
	opening := a != nil && !a.leaving
	var openErr error
	if opening {
		openErr = a.err
	}
	s.mu.Unlock()
	if sh != nil {
		answer := make(chan Status, 1)
		select {
		case sh.ask <- answer:
			return <-answer
		case <-sh.closed:
		case <-ctx.Done():
		}
	}
	st := Status{Shard: p, State: "unknown"}
	if o, ok, _ := s.owners.owner(p); ok {
		st.Owner, st.URL, st.Term, st.Epoch = o.Owner, o.URL, o.Term, o.epoch()
		if o.Owner != s.Instance {
			st.State = "elsewhere"
		}
	}
	if opening {
		st.State = "opening"
	}
	if openErr != nil {
		st.Error = openErr.Error()
	}
	return st
}

// status returns the status of a shard that is served. Only the loop calls it.
func (s *shard) status() Status {
	st := Status{Shard: s.partition, State: "serving", Owner: s.owner.Instance, URL: s.owner.URL, Term: s.term, Epoch: s.owner.epoch,
		Terms: map[string]int64{}, Offsets: map[string]int64{}, Queue: len(s.todo) + s.queue.len(), InFlight: s.unacked(),
		Aggregates: s.agg.size(), Unsaved: len(s.agg.unsaved), Saving: s.writing != nil, SavedAt: s.savedAt,
		InvalidRecords: s.invalidRecords, Replayed: s.replayed, TakenOverAt: s.openedAt, TookSeconds: s.took.Seconds()}
	for i, topic := range eventlog.AggregateTopics {
		st.Terms[topic], st.Offsets[topic] = s.logs[i].rule.Term, s.logs[i].next
	}
	return st
}

// gauges are the metrics of each shard that is served here.
var gauges = []struct {
	desc *prometheus.Desc
	of   func(Status) float64
}{
	{gauge("tomato_shard_term", "Term of the claim on orders."), func(s Status) float64 { return float64(s.Term) }},
	{gauge("tomato_shard_queue", "Commands that wait for the shard's loop."), func(s Status) float64 { return float64(s.Queue) }},
	{gauge("tomato_shard_in_flight", "Appends that are not acknowledged."), func(s Status) float64 { return float64(s.InFlight) }},
	{gauge("tomato_shard_aggregates", "Aggregates held in memory; an order and its payment are one."), func(s Status) float64 { return float64(s.Aggregates) }},
	{gauge("tomato_shard_unsaved", "Of these, changed since the last snapshot."), func(s Status) float64 { return float64(s.Unsaved) }},
	{gauge("tomato_shard_replayed_events", "Events read after the snapshot when it was taken over."), func(s Status) float64 { return float64(s.Replayed) }},
	{gauge("tomato_shard_taken_over_timestamp_seconds", "When it began to be served here."), func(s Status) float64 { return float64(s.TakenOverAt.Unix()) }},
}

func gauge(name, help string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, []string{"shard"}, nil)
}

// Describe implements prometheus.Collector.
func (s *Shards) Describe(descs chan<- *prometheus.Desc) {
	for _, g := range gauges {
		descs <- g.desc
	}
}

// Collect implements prometheus.Collector.
func (s *Shards) Collect(values chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	for _, st := range s.Status(ctx) {
		if st.State != "serving" {
			continue
		}
		for _, g := range gauges {
			values <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.of(st), strconv.Itoa(int(st.Shard)))
		}
	}
}

// Unreachable returns the shards that this instance neither serves nor can forward
// commands to. An owner that has the URL of this instance under another name is an
// earlier process at the same address: commands that are forwarded to it would come
// back to this one.
func (s *Shards) Unreachable() []int32 {
	var out []int32
	for p := range s.Partitions {
		s.mu.Lock()
		here := s.serving[p] != nil
		s.mu.Unlock()
		if o, ok, _ := s.owners.owner(p); !here && (!ok || o.Owner == s.Instance || o.URL == s.URL && s.URL != "") {
			out = append(out, p)
		}
	}
	slices.Sort(out)
	return out
}
