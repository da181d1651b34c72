package shard

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// Appends that are held while others are in flight keep their order in each partition,
// and the promise of each is called once. Appends that are held when the outbox is
// closed are sent, too.
func TestHeldAppendsKeepTheirOrder(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 3})
	client := eventlogtest.Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0))
	o := newOutbox()
	const each = 2000
	var mu sync.Mutex
	offsets := map[int32][]int64{}
	var sent, answered sync.WaitGroup
	answered.Add(3 * each)
	for p := range int32(3) {
		sent.Go(func() {
			for n := range each {
				o.put(outgoing{client, &kgo.Record{Topic: eventlog.Orders, Partition: p, Value: fmt.Append(nil, n)}, func(r *kgo.Record, err error) {
					defer answered.Done()
					if err != nil {
						t.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					if string(r.Value) != fmt.Sprint(len(offsets[p])) {
						t.Errorf("partition %d: %s is the %d. to be answered", p, r.Value, len(offsets[p]))
					}
					offsets[p] = append(offsets[p], r.Offset)
				}})
			}
		})
	}
	sent.Wait()
	o.close()
	answered.Wait()
	for p, at := range offsets {
		if len(at) != each || !slices.IsSorted(at) || at[each-1] != each-1 {
			t.Errorf("partition %d: %d answered, the last at %d", p, len(at), at[len(at)-1])
		}
	}
}
