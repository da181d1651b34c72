package feed

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"pgregory.net/rapid"

	"tomato/domain/rooms"
	"tomato/eventlog"
)

// testLog is History of simulated logs, and has the bases.
type testLog struct {
	logs [][]logged

	mu    sync.Mutex
	bases []map[eventlog.TopicPartition]int64 // by id
	reads int                                 // records that were read
	at    map[eventlog.Position][]rooms.Message
	slow  time.Duration // of reading one record
}

func newTestLog(logs [][]logged) *testLog { return &testLog{logs: logs} }

func (l *testLog) base(passed map[eventlog.TopicPartition]int64) eventlog.FeedBase {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bases = append(l.bases, passed)
	return baseAt(int64(len(l.bases)-1), passed)
}

// passed says how far an instance is that has published so many records of each log.
func (l *testLog) passed(next []int, partitions int32) map[eventlog.TopicPartition]int64 {
	at := none(partitions)
	for i, n := range next {
		if n > 0 {
			at[l.logs[i][0].tp] = l.logs[i][n-1].offset
		}
	}
	return at
}

// BaseUpTo returns the last base up to the id: there are no others between.
func (l *testLog) BaseUpTo(ctx context.Context, id int64) (eventlog.FeedBase, error) {
	l.mu.Lock()
	id = min(id, int64(len(l.bases)-1))
	l.mu.Unlock()
	return l.Base(ctx, id)
}

func (l *testLog) Base(_ context.Context, id int64) (eventlog.FeedBase, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if id < 0 || id >= int64(len(l.bases)) {
		return eventlog.FeedBase{}, eventlog.ErrGone
	}
	return baseAt(id, l.bases[id]), nil
}

func (l *testLog) Read(_ context.Context, at map[eventlog.TopicPartition][]int64, fn func(eventlog.TopicPartition, int64, []rooms.Message)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.at == nil {
		l.at = map[eventlog.Position][]rooms.Message{}
		for _, log := range l.logs {
			for _, r := range log {
				l.at[eventlog.Position{TopicPartition: r.tp, Offset: r.offset}] = r.all
			}
		}
	}
	for tp, offsets := range at {
		for _, o := range offsets {
			all, ok := l.at[eventlog.Position{TopicPartition: tp, Offset: o}]
			if !ok {
				return eventlog.ErrGone
			}
			fn(tp, o, all)
			l.reads++
			time.Sleep(l.slow)
		}
	}
	return nil
}

// readBack gives the hub what was before it began, in so many parts and a last one.
func (l *testLog) readBack(t *rapid.T, h *Hub, began map[eventlog.TopicPartition]int64, parts int) {
	upper := began
	for i := range parts + 1 {
		from := none(int32(h.at.partitions))
		if i < parts {
			for _, tp := range slices.SortedFunc(maps.Keys(from), eventlog.CompareTopicPartitions) {
				from[tp] = rapid.Int64Range(-1, upper[tp]).Draw(t, "from")
			}
		}
		_, err := h.Older(from, func(fn func(eventlog.TopicPartition, int64, time.Time, []rooms.Message)) error {
			for _, log := range l.logs {
				for _, r := range log {
					if r.offset > from[r.tp] && r.offset <= upper[r.tp] && len(r.all) > 0 {
						fn(r.tp, r.offset, time.Now().Add(time.Duration(r.offset%3)*time.Second), r.all)
					}
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		upper = from
	}
	h.NoOlder()
}
