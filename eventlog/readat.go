package eventlog

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// ErrGone means that a record is not in its log any more, because the retention of the
// topic has removed it.
var ErrGone = errors.New("the record is not in the log any more")

const (
	readAtPartitionBytes = 64 << 10 // of one answer for one partition; a larger batch comes whole
	readAtAnswerBytes    = 4 << 20  // of one answer of a broker
	readAtTries          = 5        // of one log that bring nothing new, before reading it fails
	readAtPause          = 100 * time.Millisecond
	readAtWait           = 3 * time.Second // for one answer of a broker
)

// LogErrors says which logs could not be read, and why. All others were.
type LogErrors map[TopicPartition]error

// Error implements error. It names one of the logs.
func (e LogErrors) Error() string {
	logs := slices.SortedFunc(maps.Keys(e), CompareTopicPartitions)
	switch len(logs) {
	case 0:
		return "no log failed"
	case 1:
		return e[logs[0]].Error()
	}
	return fmt.Sprintf("%v (and %d other logs)", e[logs[0]], len(logs)-1)
}

// Unwrap returns the error of each log.
func (e LogErrors) Unwrap() []error { return slices.Collect(maps.Values(e)) }

// ReadAt reads single records, anywhere in the logs. It sends one request to each broker
// that leads a partition, however many positions are read, and again for what the answers
// did not have. It costs the brokers what is asked for, and not what lies between. Safe
// for concurrent use.
type ReadAt struct {
	client *kgo.Client // the caller closes it

	mu     sync.Mutex // guards topics, which is never changed, but replaced
	topics kadm.TopicDetails
}

// NewReadAt returns a ReadAt that asks the brokers with client.
func NewReadAt(client *kgo.Client) *ReadAt { return &ReadAt{client: client} }

// Records calls fn for the record at each offset. The offsets of a log must be sorted
// and without duplicates. fn is called from one goroutine, for each log in the order of
// the offsets. The error is a LogErrors: the other logs are read. That of a log is ErrGone
// if the log does not have a record any more, or an error of fn, of ctx or of the brokers.
func (r *ReadAt) Records(ctx context.Context, at map[TopicPartition][]int64, fn func(*kgo.Record) error) error {
	return r.read(ctx, at, func(wanted []int64, got []*kgo.Record) (rest []int64, err error) {
		for _, rec := range got {
			if len(wanted) == 0 {
				break
			}
			if rec.Offset < wanted[0] {
				continue
			}
			if rec.Offset > wanted[0] {
				return nil, fmt.Errorf("%s/%d@%d: %w", rec.Topic, rec.Partition, wanted[0], ErrGone)
			}
			if err := fn(rec); err != nil {
				return nil, err
			}
			wanted = wanted[1:]
		}
		return wanted, nil
	})
}

// First calls fn for the records of one log, from the offset from on and before the
// offset to, until fn returns false. It fails as Records does.
func (r *ReadAt) First(ctx context.Context, tp TopicPartition, from, to int64, fn func(*kgo.Record) bool) error {
	if from >= to {
		return nil
	}
	return r.read(ctx, map[TopicPartition][]int64{tp: {from}}, func(_ []int64, got []*kgo.Record) (rest []int64, err error) {
		next := from
		for _, rec := range got {
			if next = rec.Offset + 1; rec.Offset >= to || !fn(rec) {
				return nil, nil
			}
		}
		if from = next; from >= to {
			return nil, nil
		}
		return []int64{from}, nil
	})
}

// read asks for the first of the wanted offsets of each log, until take, which is given
// the records from there on, leaves none.
func (r *ReadAt) read(ctx context.Context, at map[TopicPartition][]int64, take func(wanted []int64, got []*kgo.Record) (rest []int64, err error)) error {
	at = maps.Clone(at)
	maps.DeleteFunc(at, func(_ TopicPartition, offsets []int64) bool { return len(offsets) == 0 })
	failed, tries := LogErrors{}, map[TopicPartition]int{}
	fail := func(tp TopicPartition, err error) {
		failed[tp] = err
		delete(at, tp)
	}
	retry := func(tp TopicPartition, err error) {
		if tries[tp]++; tries[tp] >= readAtTries {
			fail(tp, err)
		}
	}
	for again := false; len(at) > 0; {
		if again {
			select {
			case <-time.After(readAtPause):
			case <-ctx.Done():
			}
		}
		if err := ctx.Err(); err != nil {
			for tp := range at {
				fail(tp, err)
			}
			break
		}
		answers := r.fetch(ctx, at, again)
		again = false
		progress := false
		for _, p := range answers {
			tp := TopicPartition{p.topic, p.Partition}
			wanted := at[tp]
			switch {
			case len(wanted) == 0:
				continue
			case errors.Is(p.Err, kerr.OffsetOutOfRange):
				fail(tp, fmt.Errorf("%s/%d@%d: %w", tp.Topic, tp.Partition, wanted[0], ErrGone))
				continue
			case p.Err != nil:
				again = true
				retry(tp, fmt.Errorf("reading %s/%d: %w", tp.Topic, tp.Partition, p.Err))
				continue
			case len(p.Records) == 0:
				continue
			}
			progress = true
			rest, err := take(wanted, p.Records)
			if err != nil {
				fail(tp, err)
				continue
			}
			delete(tries, tp)
			if at[tp] = rest; len(rest) == 0 {
				delete(at, tp)
			}
		}
		if !progress && !again {
			again = true
			for tp := range at {
				retry(tp, errors.New("the brokers answer without the records that were asked for"))
			}
		}
	}
	if len(failed) > 0 {
		return failed
	}
	return nil
}

type readAtAnswer struct {
	topic string
	kgo.FetchPartition
}

// fetch sends one request to each broker that leads one of the logs, to all at the same
// time. If a broker cannot be asked, the answers of its logs have the error.
func (r *ReadAt) fetch(ctx context.Context, at map[TopicPartition][]int64, again bool) (all []readAtAnswer) {
	ctx, cancel := context.WithTimeout(ctx, readAtWait)
	defer cancel()
	topics, err := r.leaders(ctx, again)
	if err != nil {
		for tp := range at {
			all = append(all, readAtError(tp, err))
		}
		return all
	}
	requests := map[int32]*kmsg.FetchRequest{}
	names := map[[16]byte]string{}
	for _, tp := range slices.SortedFunc(maps.Keys(at), CompareTopicPartitions) {
		leader := topics[tp.Topic].Partitions[tp.Partition].Leader
		req := requests[leader]
		if req == nil {
			req = kmsg.NewPtrFetchRequest()
			req.MaxWaitMillis, req.MinBytes, req.MaxBytes = 100, 1, readAtAnswerBytes
			req.SessionEpoch = -1 // no session
			requests[leader] = req
		}
		if n := len(req.Topics); n == 0 || req.Topics[n-1].Topic != tp.Topic {
			t := kmsg.NewFetchRequestTopic()
			t.Topic, t.TopicID = tp.Topic, topics[tp.Topic].ID
			names[t.TopicID] = tp.Topic
			req.Topics = append(req.Topics, t)
		}
		p := kmsg.NewFetchRequestTopicPartition()
		p.Partition, p.FetchOffset, p.PartitionMaxBytes = tp.Partition, at[tp][0], readAtPartitionBytes
		t := &req.Topics[len(req.Topics)-1]
		t.Partitions = append(t.Partitions, p)
	}
	var mu sync.Mutex
	var asked sync.WaitGroup
	for leader, req := range requests {
		asked.Go(func() {
			answers, err := r.ask(ctx, leader, req, names, at)
			if err != nil {
				answers = nil
				for i := range req.Topics {
					for j := range req.Topics[i].Partitions {
						answers = append(answers, readAtError(TopicPartition{req.Topics[i].Topic, req.Topics[i].Partitions[j].Partition}, err))
					}
				}
			}
			mu.Lock()
			defer mu.Unlock()
			all = append(all, answers...)
		})
	}
	asked.Wait()
	return all
}

func readAtError(tp TopicPartition, err error) readAtAnswer {
	return readAtAnswer{tp.Topic, kgo.FetchPartition{Partition: tp.Partition, Err: err}}
}

// ask sends one request. names are those of the topics by id.
func (r *ReadAt) ask(ctx context.Context, leader int32, req *kmsg.FetchRequest, names map[[16]byte]string, at map[TopicPartition][]int64) (all []readAtAnswer, err error) {
	resp, err := req.RequestWith(ctx, r.client.Broker(int(leader)))
	if err != nil {
		return nil, fmt.Errorf("reading from broker %d: %w", leader, err)
	}
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, fmt.Errorf("reading from broker %d: %w", leader, err)
	}
	for i := range resp.Topics {
		t := &resp.Topics[i]
		name := t.Topic
		if name == "" {
			name = names[t.TopicID]
		}
		for j := range t.Partitions {
			p := &t.Partitions[j]
			offsets := at[TopicPartition{name, p.Partition}]
			if len(offsets) == 0 {
				continue
			}
			opts := kgo.ProcessFetchPartitionOpts{KeepControlRecords: true, Offset: offsets[0], Topic: name, Partition: p.Partition}
			fp, _ := kgo.ProcessFetchPartition(opts, p, kgo.DefaultDecompressor(), nil)
			all = append(all, readAtAnswer{name, fp})
		}
	}
	return all, nil
}

// leaders returns the topics with the leaders of their partitions, as they were when they
// were last asked for.
func (r *ReadAt) leaders(ctx context.Context, again bool) (kadm.TopicDetails, error) {
	r.mu.Lock()
	known := r.topics
	r.mu.Unlock()
	if known != nil && !again {
		return known, nil
	}
	meta, err := kadm.NewClient(r.client).Metadata(ctx, tokenTopics...)
	if err != nil {
		return nil, fmt.Errorf("asking which brokers lead the logs: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.topics = meta.Topics
	return meta.Topics, nil
}
