package consumer

import (
	"context"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// --- copies

// parkedCopy is the record that goes to a retry or dead letter topic.
func parkedCopy(src *kgo.Record, tp eventlog.TopicPartition, consumer string, generation int, it *parkedItem, stage string) *kgo.Record {
	h := slices.Clip(src.Headers)
	add := func(k, v string) { h = append(h, kgo.RecordHeader{Key: k, Value: []byte(v)}) }
	add(hdrSourceTopic, tp.Topic)
	add(hdrSourcePartition, strconv.Itoa(int(tp.Partition)))
	add(hdrSourceOffset, strconv.FormatInt(it.offset, 10))
	add(hdrSourceTimestamp, src.Timestamp.UTC().Format(time.RFC3339Nano))
	add(hdrConsumer, consumer)
	add(hdrGeneration, strconv.Itoa(generation))
	add(hdrAttempt, strconv.Itoa(it.attempt))
	add(hdrErrorClass, it.class)
	add(hdrError, it.text)
	if !it.firstFailed.IsZero() {
		add(hdrFirstFailed, it.firstFailed.UTC().Format(time.RFC3339Nano))
		add(hdrLastFailed, it.lastFailed.UTC().Format(time.RFC3339Nano))
	}
	return &kgo.Record{Topic: eventlog.ParkedTopic(tp.Topic, consumer, stage), Partition: tp.Partition, Key: src.Key, Value: src.Value, Headers: h}
}

// originalOf turns a copy back into its source record; nil if it is none of it.
func originalOf(c *kgo.Record, tp eventlog.TopicPartition, offset int64) *kgo.Record {
	r := &kgo.Record{Topic: tp.Topic, Partition: tp.Partition, Offset: offset, Key: c.Key, Value: c.Value, Timestamp: c.Timestamp}
	for _, h := range c.Headers {
		switch h.Key {
		case hdrSourceOffset:
			if string(h.Value) != strconv.FormatInt(offset, 10) {
				return nil
			}
		case hdrSourceTimestamp:
			if t, err := time.Parse(time.RFC3339Nano, string(h.Value)); err == nil {
				r.Timestamp = t
			}
		case hdrValueOmitted:
			return nil
		}
		if !slices.Contains(parkedHeaders, h.Key) {
			r.Headers = append(r.Headers, h)
		}
	}
	return r
}

// produceCopy appends a copy to its topic and returns where it landed. A copy
// that is too large goes without its value, its key, and those of the record's own
// headers that are long: the source has them.
func produceCopy(ctx context.Context, cl *kgo.Client, rec *kgo.Record) (offset int64, err error) {
	type landed struct {
		offset int64
		err    error
	}
	produce := func(rec *kgo.Record) (int64, error) {
		// Not ProduceSync: an idempotent batch that may have landed is not
		// given up when ctx ends, and a stopping worker must not wait for it.
		done := make(chan landed, 1)
		cl.Produce(ctx, rec, func(r *kgo.Record, err error) { done <- landed{r.Offset, err} })
		select {
		case l := <-done:
			return l.offset, l.err
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	offset, err = produce(rec)
	if errors.Is(err, kerr.MessageTooLarge) {
		bare := *rec
		bare.Key, bare.Value = nil, nil
		bare.Headers = []kgo.RecordHeader{{Key: hdrValueOmitted, Value: []byte("true")}}
		size := 0
		for i := len(rec.Headers) - 1; i >= 0; i-- { // from the end, where those of the copy itself are
			h := rec.Headers[i]
			if size += len(h.Key) + len(h.Value); size > maxBareHeaders {
				break
			}
			bare.Headers = append(bare.Headers, h)
		}
		offset, err = produce(&bare)
	}
	return offset, err
}
