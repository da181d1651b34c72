package eventlogtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"tomato/domain/order"
	"tomato/eventlog"
)

// Junk returns records for a partition of any topic: one of each kind that no writer of
// Tomato makes. None of them is valid by the reader rule, unless its term and seq
// happen to be the next ones. They are chosen so that this does not happen in the log
// of a test.
func Junk(topic string, partition int32) []*kgo.Record {
	large := bytes.Repeat([]byte("noise\x00\xff\n"), 110_000) // smaller than the 1 MiB that a broker accepts
	header := func(pairs ...string) (h []kgo.RecordHeader) {
		for i := 0; i+1 < len(pairs); i += 2 {
			h = append(h, kgo.RecordHeader{Key: pairs[i], Value: []byte(pairs[i+1])})
		}
		return h
	}
	event := func(pairs ...string) []kgo.RecordHeader {
		return append(header("ce_specversion", "1.0", "ce_id", "j", "ce_source", "/junk", "ce_type", order.TypeOrderPaid,
			"ce_time", "2026-01-02T03:04:05Z", "ce_subject", "x", "content-type", "application/json", "version", "1"), header(pairs...)...)
	}
	records := []*kgo.Record{
		{},
		{Value: []byte("junk")},
		{Key: []byte("x")}, // a tombstone
		{Key: []byte("x"), Value: []byte("{}")},
		{Value: large},
		{Key: large, Value: []byte("{}")},
		{Key: []byte("x"), Value: []byte("{}"), Headers: header("term", "x")},
		{Key: []byte("x"), Value: []byte("{}"), Headers: header("ce_id", "1", "ce_type", "com.example.created", "ce_source", "/another", "ce_specversion", "1.0")},
		{Key: []byte("x"), Value: []byte("{}"), Headers: event()},
		{Key: []byte("x"), Value: []byte("{}"), Headers: event("term", "1000", "seq", "1")},
		{Key: []byte("x"), Value: []byte("{}"), Headers: event("term", "-1", "seq", "-1", "version", "-1")},
		{Key: []byte("x"), Value: []byte("{}"), Headers: event("term", "9223372036854775807", "seq", "9223372036854775807", "version", "9223372036854775807")},
		{Key: []byte("x"), Value: []byte("{}"), Headers: event("term", "9223372036854775808", "seq", "1")},
		{Key: []byte("x"), Value: []byte("{}"), Headers: event("term", "1", "term", "", "seq", "1", "seq", "two")},
		{Key: []byte("x"), Value: []byte("{}"), Headers: event("ce_type", "SHARD_CLAIMED", "term", "0", "seq", "5")},
		{Key: []byte("x"), Value: []byte("{}"), Headers: event("ce_type", "SHARD_CLAIMED", "term", "-1")},
		{Key: []byte("x"), Value: []byte("{}"), Headers: event("ce_type", "SHARD_CLAIMED", "term", "1000")},
		{Key: []byte("x"), Value: []byte("{}"), Headers: event("ce_type", "SHARD_CHECK", "term", "1000", "seq", "1")},
		{Key: []byte("\xff\xfe"), Value: []byte("\xff"), Headers: header("ce_type", "\xff\x00", "ce_subject", "\xff\x00", "ce_time", "yesterday", "term", "\xff", "seq", "\x00")},
		{Key: []byte("x"), Value: []byte("{}"), Headers: header("ce_type", strings.Repeat("T", 900_000))},
		{Key: []byte("x"), Value: []byte("{}"), Headers: event("ce_correlationid", strings.Repeat("c", 900_000))},
		{Key: []byte("x"), Value: []byte("{}"), Headers: header("", "", "", "")},
	}
	for _, r := range records {
		r.Topic, r.Partition = topic, partition
	}
	return records
}

// AppendJunk appends Junk to each partition of the topics. Then it appends a
// transaction that is aborted and one that is committed, so that each log ends with
// the marker of a committed transaction.
func AppendJunk(t testing.TB, cfg eventlog.Config, partitions int32, topics ...string) {
	t.Helper()
	client := Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	var all errgroup.Group
	for _, topic := range topics {
		for p := range partitions {
			all.Go(func() error {
				for _, r := range Junk(topic, p) { // one by one, because Kafka refuses a whole batch if it refuses one record
					err := client.ProduceSync(ctx, r).FirstErr()
					if refused := r.Key == nil && errors.Is(err, kerr.InvalidRecord); err != nil && !refused { // a compacted topic refuses records without a key
						return fmt.Errorf("junk on %s/%d: %w", topic, p, err)
					}
				}
				return nil
			})
		}
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	transactional := Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.TransactionalID("junk-"+rand.Text()), kgo.ConcurrentTransactionsBackoff(time.Millisecond))
	for _, end := range []kgo.TransactionEndTry{kgo.TryAbort, kgo.TryCommit} {
		if err := transactional.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		var records []*kgo.Record
		for _, topic := range topics {
			for p := range partitions {
				records = append(records, &kgo.Record{Topic: topic, Partition: p, Key: []byte("junk"), Value: []byte("of a transaction")})
			}
		}
		if err := transactional.ProduceSync(ctx, records...).FirstErr(); err != nil {
			t.Fatalf("a transaction: %v", err)
		}
		if err := transactional.EndTransaction(ctx, end); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzRecords calls fn with records of one topic. They are made from the golden files
// that match the pattern (such as testdata/*.v1.json, relative to the package's
// folder), from Junk, and from what the fuzzer makes of these. The arguments of the
// fuzz target are the record's headers. The argument odd is one more header, in the
// form key=value.
func FuzzRecords(f *testing.F, topic, golden string, fn func(t *testing.T, r *kgo.Record)) {
	f.Helper()
	const at = "2026-01-02T03:04:05Z"
	files, err := filepath.Glob(golden)
	if err != nil || golden != "" && len(files) == 0 {
		f.Fatal("no golden files: ", golden, err)
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		eventType, _, _ := strings.Cut(filepath.Base(file), ".")
		f.Add(data, eventType, "x1", at, "1", "1", "1", "")
	}
	for _, r := range Junk(topic, 0) {
		h := map[string]string{}
		for _, x := range r.Headers {
			h[x.Key] = string(x.Value)
		}
		if len(r.Value)+len(h["ce_type"])+len(h["ce_correlationid"])+len(r.Key) < 10_000 { // without large records, which make the fuzzer slow
			f.Add(r.Value, h["ce_type"], h["ce_subject"], h["ce_time"], h["version"], h["term"], h["seq"], "term=1")
		}
	}
	f.Add([]byte("{}"), "SHARD_CLAIMED", "x1", at, "1", "2", "7", "ce_id=c")
	f.Add([]byte("null"), order.TypeOrderPlaced, "x1", "9999-12-31T23:59:59-23:59", "1", "1", "1", "idempotency=00.00.1")
	f.Fuzz(func(t *testing.T, data []byte, eventType, subject, at, version, term, seq, odd string) {
		r := &kgo.Record{Topic: topic, Key: []byte(subject), Value: data, Timestamp: time.Unix(1_767_323_045, 0)}
		add := func(key, value string) {
			if value != "" {
				r.Headers = append(r.Headers, kgo.RecordHeader{Key: key, Value: []byte(value)})
			}
		}
		add("ce_type", eventType)
		add("ce_subject", subject)
		add("ce_time", at)
		add("version", version)
		add("term", term)
		add("seq", seq)
		if key, value, ok := strings.Cut(odd, "="); ok {
			add(key, value)
		}
		fn(t, r)
	})
}
