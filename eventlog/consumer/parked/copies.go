package parked

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

// Headers that a copy has besides those of its record.
const (
	headerSourceTopic     = "source-topic"
	headerSourcePartition = "source-partition"
	headerSourceOffset    = "source-offset"
	headerSourceTimestamp = "source-timestamp" // RFC 3339
	headerConsumer        = "consumer"
	headerGeneration      = "generation"
	headerAttempt         = "attempt" // failed attempts so far
	headerErrorClass      = "error-class"
	headerError           = "error"
	headerFirstFailed     = "first-failed-at" // RFC 3339
	headerLastFailed      = "last-failed-at"  // RFC 3339
	headerValueOmitted    = "value-omitted"   // "true": the record is too large to be copied; the source topic has it
)

var copyHeaders = []string{headerSourceTopic, headerSourcePartition, headerSourceOffset, headerSourceTimestamp, headerConsumer,
	headerGeneration, headerAttempt, headerErrorClass, headerError, headerFirstFailed, headerLastFailed, headerValueOmitted}

const maxBareHeaderBytes = 64 << 10 // of headers in the copy of a record that is too large to be copied

// NewCopy returns the copy of rec, the record of e, for the topic of stage.
func (e *Event) NewCopy(rec *kgo.Record, source Source, stage string) *kgo.Record {
	h := slices.Clip(rec.Headers)
	add := func(k, v string) { h = append(h, kgo.RecordHeader{Key: k, Value: []byte(v)}) }
	add(headerSourceTopic, source.Topic)
	add(headerSourcePartition, strconv.Itoa(int(source.Partition)))
	add(headerSourceOffset, strconv.FormatInt(e.Offset, 10))
	add(headerSourceTimestamp, rec.Timestamp.UTC().Format(time.RFC3339Nano))
	add(headerConsumer, source.Consumer)
	add(headerGeneration, strconv.Itoa(source.Generation))
	add(headerAttempt, strconv.Itoa(e.Attempts))
	add(headerErrorClass, e.Class)
	add(headerError, e.Reason)
	if !e.FirstFailed.IsZero() {
		add(headerFirstFailed, e.FirstFailed.UTC().Format(time.RFC3339Nano))
		add(headerLastFailed, e.LastFailed.UTC().Format(time.RFC3339Nano))
	}
	return &kgo.Record{Topic: eventlog.ParkedTopic(source.Topic, source.Consumer, stage), Partition: source.Partition, Key: rec.Key, Value: rec.Value, Headers: h}
}

// original turns a copy back into the source record at offset. It returns nil if
// c is not a complete copy of that record.
func original(c *kgo.Record, tp eventlog.TopicPartition, offset int64) *kgo.Record {
	r := &kgo.Record{Topic: tp.Topic, Partition: tp.Partition, Offset: offset, Key: c.Key, Value: c.Value, Timestamp: c.Timestamp}
	for _, h := range c.Headers {
		switch h.Key {
		case headerSourceOffset:
			if string(h.Value) != strconv.FormatInt(offset, 10) {
				return nil
			}
		case headerSourceTimestamp:
			if t, err := time.Parse(time.RFC3339Nano, string(h.Value)); err == nil {
				r.Timestamp = t
			}
		case headerValueOmitted:
			return nil
		}
		if !slices.Contains(copyHeaders, h.Key) {
			r.Headers = append(r.Headers, h)
		}
	}
	return r
}

// ProduceCopy appends a copy to its topic and returns its offset there. A copy
// that is too large is appended without its key, its value and the long ones of
// the record's own headers; the source topic has them. The client keeps rec, so
// the caller must not use it again.
func ProduceCopy(ctx context.Context, cl *kgo.Client, rec *kgo.Record) (offset int64, err error) {
	type acknowledgement struct {
		offset int64
		err    error
	}
	produce := func(rec *kgo.Record) (int64, error) {
		// ProduceSync would not return when ctx ends: the client does not give up
		// an idempotent batch that the broker may have appended. A worker that
		// stops must not wait for it.
		done := make(chan acknowledgement, 1)
		cl.Produce(ctx, rec, func(r *kgo.Record, err error) { done <- acknowledgement{r.Offset, err} })
		select {
		case a := <-done:
			return a.offset, a.err
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	offset, err = produce(rec)
	if errors.Is(err, kerr.MessageTooLarge) {
		bare := *rec
		bare.Key, bare.Value = nil, nil
		bare.Headers = []kgo.RecordHeader{{Key: headerValueOmitted, Value: []byte("true")}}
		size := 0
		for i := len(rec.Headers) - 1; i >= 0; i-- { // from the end, where the headers of NewCopy are
			h := rec.Headers[i]
			if size += len(h.Key) + len(h.Value); size > maxBareHeaderBytes {
				break
			}
			bare.Headers = append(bare.Headers, h)
		}
		offset, err = produce(&bare)
	}
	return offset, err
}
