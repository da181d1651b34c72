package shard

import (
	"bytes"
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/domain/rider"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys/subjectkeystest"
)

func TestBatchesAreCompressed(t *testing.T) {
	t.Parallel()
	c, err := newBatchCompressor()
	if err != nil {
		t.Fatal(err)
	}
	var records bytes.Buffer
	for i := 0; records.Len() < 2*largeBatch; i++ {
		fmt.Fprintf(&records, `ce_type RIDER_UPDATED ce_subject rider-%d {"riderId":"rider-%d","name":"Una Rao","ctx":{"riderId":"rider-%d"}}`, i, i, i)
	}
	large := records.Bytes()
	if out, codec := c.Compress(&bytes.Buffer{}, large); codec != kgo.CodecZstd || len(out) > len(large)/5 {
		t.Errorf("%d bytes as %d with codec %d", len(large), len(out), codec)
	}
	small := large[:largeBatch-1]
	if out, codec := c.Compress(&bytes.Buffer{}, small); codec != kgo.CodecSnappy || len(out) > len(small)/3 {
		t.Errorf("%d bytes as %d with codec %d", len(small), len(out), codec)
	}
}

// What was appended in compressed batches is read again by a take-over, on both brokers.
func TestCompressedAppendsAreRead(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		snapshotTopics(t, cfg)
		l := newLone(t, cfg)
		a := l.serve()
		const n = 400
		calls := make([]*call, n)
		for i := range calls {
			id := fmt.Sprint("r", i)
			calls[i] = newCall(Request{Topic: eventlog.Riders, ID: id, Actor: domain.SystemActor, Command: rider.Put{RiderID: id, Name: subjectkeystest.Name(id, "Una Rao")}})
			calls[i].ctx = t.Context()
			if err := a.queue.put(calls[i]); err != nil {
				t.Fatal(err)
			}
		}
		for i, c := range calls {
			if <-c.done; c.err != nil {
				t.Fatalf("r%d: %v", i, c.err)
			}
		}
		a.kill() // without a snapshot
		b := l.serve()
		for i := range n {
			if res := b.must(eventlog.Riders, fmt.Sprint("r", i), "", Look{}); res.Rider == nil || res.Rider.Version != 1 {
				t.Fatalf("r%d: %+v", i, res.Rider)
			}
		}
	})
}
