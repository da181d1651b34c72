package projections

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"tomato/eventlog"
	"tomato/eventlog/consumer"
)

const (
	// joinWait is how long a hand-over waits for the first process that projects the
	// generation, and then for the others. A process reads the generations every
	// pollInterval.
	joinWait = 5 * time.Second
	// handOverPause is the pause between two looks at the consumer group.
	handOverPause = 100 * time.Millisecond
	// passWait is how long it then waits for positions before it looks again.
	passWait = time.Second
	// handOverLimit is how long a hand-over may be without any progress.
	handOverLimit = 5 * time.Minute
)

// handOver waits until the processes that project have all partitions of the generation,
// which is verified, and have passed the present ends of the logs. As many must have joined
// as project the serving generation, because one that joins after the switch makes the
// group distribute the partitions anew, and queries with a token wait meanwhile. If none
// projects, it runs the generation's consumer itself up to the ends, and returns true.
func (r *rebuild) handOver(ctx context.Context) (alone bool, err error) {
	topics := Topics(r.g.Model)
	ends, err := eventlog.EndOffsets(ctx, r.client, topics...)
	if err != nil {
		return false, err
	}
	r.meter.begin(PhaseHandingOver, ends)
	adm := kadm.NewClient(r.client)
	since := time.Now() // the last progress
	moves := r.meter.moves.Load()
	expected, known := r.projecting(ctx, adm)
	var joined time.Time // when the first member was seen
	for began := since; ; {
		has, err := r.owners(ctx, adm, r.g, ends)
		if has.members > 0 {
			began = time.Now()
			if joined.IsZero() {
				joined = began
			}
		}
		switch {
		case err != nil:
			r.m.log().Debug("the consumer group of a new generation cannot be read", "generation", r.g.String(), "err", err)
		case has.members == 0 && (time.Since(began) > joinWait || known && expected == 0):
			return true, r.bringUp(ctx, ends)
		case has.all && (has.members >= expected || time.Since(joined) > cmp.Or(r.m.othersWait, joinWait)):
			if passed, err := r.passed(ctx, ends); err != nil || passed {
				return false, err
			}
		}
		if now := r.meter.moves.Load(); now != moves {
			since, moves = time.Now(), now
		}
		if time.Since(since) > handOverLimit {
			return false, fmt.Errorf("the processes that project have not brought %s up to date for %v: look at `tomato dlq list` and at /readyz of these processes", r.g, handOverLimit)
		}
		if err := pause(ctx, handOverPause); err != nil {
			return false, err
		}
	}
}

// owned says who has joined the consumer group of a generation.
type owned struct {
	members int  // how many have
	all     bool // they have all partitions
}

func (r *rebuild) owners(ctx context.Context, adm *kadm.Client, g Generation, ends map[eventlog.TopicPartition]int64) (owned, error) {
	ctx, cancel := context.WithTimeout(ctx, passWait)
	defer cancel()
	group := g.Consumer().Group()
	described, err := adm.DescribeGroups(ctx, group)
	if err != nil {
		return owned{}, err
	}
	is := described[group] // the zero value if there is no such group
	missing := len(ends)
	for _, member := range is.Members {
		assigned, ok := member.Assigned.AsConsumer()
		if !ok {
			continue
		}
		for _, t := range assigned.Topics {
			for _, p := range t.Partitions {
				if _, ok := ends[eventlog.TopicPartition{Topic: t.Topic, Partition: p}]; ok {
					missing--
				}
			}
		}
	}
	return owned{members: len(is.Members), all: is.State == "Stable" && missing == 0}, nil
}

// projecting returns how many processes will project the new generation: those that
// project the generation that serves, if that has the same fold. If it has another one,
// nobody can tell.
func (r *rebuild) projecting(ctx context.Context, adm *kadm.Client) (n int, known bool) {
	if r.m.seen.Load().all[r.before].fold != r.m.fold(r.g.Model) {
		return 0, false
	}
	has, err := r.owners(ctx, adm, r.before, nil)
	return has.members, err == nil
}

// passed waits for passWait at the longest until the generation has passed ends, and
// reports whether it has. A partition in which too much is parked handles nothing until an
// operator acts. It is left out if that is so in the generation that serves as well, or if
// that one has passed nothing of it. Otherwise queries would get older rows than before.
func (r *rebuild) passed(ctx context.Context, ends map[eventlog.TopicPartition]int64) (bool, error) {
	token := eventlog.TokenBefore(ends)
	paused, err := consumer.OverBudget(ctx, r.m.DB, r.g.Consumer())
	if err != nil {
		return false, nil
	}
	if len(paused) > 0 && !r.o.AcceptDifferences {
		if err := r.pausedBefore(ctx, paused); err != nil {
			return false, err
		}
	}
	for tp := range paused {
		r.m.log().Warn("a partition of a new generation is paused, because too many of its events are parked; it serves as it is", "generation", r.g.String(),
			"topic", tp.Topic, "partition", tp.Partition)
		delete(token, tp)
	}
	bounded, cancel := context.WithTimeout(ctx, passWait)
	defer cancel()
	err = r.m.Positions.WaitFor(bounded, r.g.Model, r.g.Number, Topics(r.g.Model), token)
	if reached, rerr := checkpointsOf(ctx, r.m.DB, r.g); rerr == nil {
		for tp, next := range reached {
			r.meter.reached(tp, next)
		}
	}
	switch {
	case err == nil:
		return true, nil
	case ctx.Err() != nil:
		return false, ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return false, nil
	}
	return false, err
}

// pausedBefore fails if one of the partitions, which are paused in the new generation, is
// not paused in the one that serves.
func (r *rebuild) pausedBefore(ctx context.Context, paused map[eventlog.TopicPartition]bool) error {
	old, err := consumer.OverBudget(ctx, r.m.DB, r.before.Consumer())
	if err != nil {
		return err
	}
	passed, err := checkpointsOf(ctx, r.m.DB, r.before)
	if err != nil {
		return err
	}
	for tp := range paused {
		if !old[tp] && passed[tp] > 0 {
			return fmt.Errorf("partition %d of %s is paused in %s, because too many of its events are parked, but not in %s: look at `tomato dlq list`, or run `tomato rebuild %s --resume --accept-differences` to switch all the same",
				tp.Partition, tp.Topic, r.g, r.before, r.g.Model)
		}
	}
	return nil
}

// bringUp runs the generation's consumer in this process until it has passed ends.
func (r *rebuild) bringUp(ctx context.Context, ends map[eventlog.TopicPartition]int64) error {
	own, stop := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- r.o.Runtime.Run(own, r.g.Consumer()) }()
	defer func() {
		stop()
		<-ended
	}()
	since, moves := time.Now(), r.meter.moves.Load()
	for {
		if passed, err := r.passed(ctx, ends); err != nil || passed {
			return err
		}
		if now := r.meter.moves.Load(); now != moves {
			since, moves = time.Now(), now
		}
		if time.Since(since) > handOverLimit {
			return fmt.Errorf("%s makes no progress for %v: look at `tomato dlq list`", r.g, handOverLimit)
		}
	}
}
