package eventlog_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"tomato/eventlog"
)

func TestEventIsTheSameAfterALifeAsRecord(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.StringMatching(`[a-zA-Z0-9 /:.-]{0,20}`)
		e := eventlog.Event{
			ID: text.Draw(t, "id"), Source: text.Draw(t, "source"), Type: "T" + text.Draw(t, "type"),
			Time:    time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "s"), rapid.Int64Range(0, 999_999_999).Draw(t, "ns")).UTC(),
			Subject: text.Draw(t, "subject"), Version: rapid.Int64Range(0, 1<<40).Draw(t, "version"),
			Schema: rapid.SampledFrom([]int{0, 2, 3, 1 << 20}).Draw(t, "schema"), CausationID: text.Draw(t, "causation"), CorrelationID: text.Draw(t, "correlation"),
			Traceparent: text.Draw(t, "trace"), Idempotency: text.Draw(t, "idempotency"), Actor: text.Draw(t, "actor"),
			Data: []byte(text.Draw(t, "data")),
		}
		if e.Term = rapid.Int64Range(0, 1<<40).Draw(t, "term"); e.Term > 0 {
			e.Seq = rapid.Int64Range(0, 1<<40).Draw(t, "seq")
		}
		r := e.NewRecord(eventlog.Orders, 7)
		r.Offset = 12
		got, err := eventlog.ParseRecord(r)
		if err != nil {
			t.Fatal(err)
		}
		want := e
		want.Topic, want.Partition, want.Offset, want.Timestamp = eventlog.Orders, 7, 12, e.Time
		if diff := cmp.Diff(want, got, cmpopts.IgnoreFields(eventlog.Event{}, "Record")); diff != "" {
			t.Fatal(diff)
		}
		if string(r.Key) != e.Subject || (r.Key == nil) != (e.Subject == "") {
			t.Fatalf("key %q", r.Key)
		}
	})
}

// Other programs read the headers, so they are those of CloudEvents.
func TestRecordOnTheWire(t *testing.T) {
	t.Parallel()
	e := eventlog.Event{
		ID: "e1", Source: "/tomato", Type: "ORDER_PAID", Time: time.Date(2026, 1, 2, 3, 4, 5, 600, time.FixedZone("", 3600)),
		Subject: "o1", Version: 2, Term: 3, Seq: 4, Data: []byte(`{"a":1}`),
	}
	headers := func(r *kgo.Record) string {
		var b strings.Builder
		for _, h := range r.Headers {
			fmt.Fprintf(&b, "%s=%s ", h.Key, h.Value)
		}
		return b.String()
	}
	if got, want := headers(e.NewRecord("orders", 0)), "ce_specversion=1.0 ce_id=e1 ce_source=/tomato ce_type=ORDER_PAID ce_time=2026-01-02T02:04:05.0000006Z ce_subject=o1 content-type=application/json version=2 term=3 seq=4 "; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	// A later version of the type's data. The first one has no such header.
	e.Schema = 2
	if got, want := headers(e.NewRecord("orders", 0)), "ce_specversion=1.0 ce_id=e1 ce_source=/tomato ce_type=ORDER_PAID ce_time=2026-01-02T02:04:05.0000006Z ce_subject=o1 content-type=application/json ce_dataschema=tomato:/schemas/ORDER_PAID/2 version=2 term=3 seq=4 "; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	claim := eventlog.Event{ID: "c1", Source: "/tomato", Type: eventlog.ShardClaimed, Time: time.Unix(0, 0), Term: 1}
	r := claim.NewRecord("orders", 0)
	if got, want := headers(r), "ce_specversion=1.0 ce_id=c1 ce_source=/tomato ce_type=SHARD_CLAIMED ce_time=1970-01-01T00:00:00Z content-type=application/json term=1 seq=0 "; got != want || r.Key != nil {
		t.Errorf("got  %s\nwant %s, key %q", got, want, r.Key)
	}
}

// A ce_dataschema that is not one of the event's type names a version that nobody knows.
// It makes the record no less valid: the reader rule goes on behind it.
func TestDataSchemaOnTheWire(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]int{
		"tomato:/schemas/ORDER_PAID/2": 2, "tomato:/schemas/ORDER_PAID/17": 17,
		"": eventlog.UnknownSchema, "2": eventlog.UnknownSchema, "/schemas/ORDER_PAID/2": eventlog.UnknownSchema, "tomato:/schemas/ORDER_PLACED/2": eventlog.UnknownSchema,
		"tomato:/schemas/ORDER_PAID/1": eventlog.UnknownSchema, "tomato:/schemas/ORDER_PAID/02": eventlog.UnknownSchema, "tomato:/schemas/ORDER_PAID/-2": eventlog.UnknownSchema,
		"tomato:/schemas/ORDER_PAID/2/": eventlog.UnknownSchema, "tomato:/schemas/ORDER_PAID/99999999999999999999": eventlog.UnknownSchema,
		"tomato:/schemas/ORDER_PAID/1073741825": eventlog.UnknownSchema, "xtomato:/schemas/ORDER_PAID/2": eventlog.UnknownSchema,
	} {
		e := eventlog.Event{ID: "e1", Source: "/tomato", Type: "ORDER_PAID", Time: time.Unix(0, 0), Subject: "o1", Version: 1, Term: 1, Seq: 1}
		r := e.NewRecord("orders", 0)
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: "ce_dataschema", Value: []byte(value)})
		got, err := eventlog.ParseRecord(r)
		rule := eventlog.Rule{Term: 1}
		if take, _ := rule.Take(&got); err != nil || got.Schema != want || got.DataVersion() != want || !take {
			t.Errorf("%q is version %d, %v, taken %v; want %d", value, got.Schema, err, take, want)
		}
	}
	if e := (eventlog.Event{}); e.DataVersion() != 1 {
		t.Errorf("without the header it is version %d", e.DataVersion())
	}
}

func TestWhatIsNoEventIsRefused(t *testing.T) {
	t.Parallel()
	for _, headers := range [][]kgo.RecordHeader{
		nil,
		{{Key: "ce_id", Value: []byte("1")}},
		{{Key: "ce_type", Value: []byte("ORDER_PAID")}, {Key: "version", Value: []byte("two")}},
		{{Key: "ce_type", Value: []byte("ORDER_PAID")}, {Key: "term", Value: []byte("9223372036854775808")}},
		{{Key: "ce_type", Value: []byte("ORDER_PAID")}, {Key: "ce_time", Value: []byte("yesterday")}},
	} {
		_, err := eventlog.ParseRecord(&kgo.Record{Topic: "orders", Partition: 3, Offset: 9, Headers: headers})
		if err == nil || !strings.Contains(err.Error(), "orders/3@9") {
			t.Errorf("%v: %v", headers, err)
		}
	}
}

// A client that sends a key with Kafka's default partitioner must choose the partition
// that PartitionFor returns.
func TestPartitionForIsKafkasOwn(t *testing.T) {
	t.Parallel()
	kgos := kgo.StickyKeyPartitioner(nil).ForTopic("orders")
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.StringN(1, 60, -1).Draw(t, "key")
		n := rapid.Int32Range(1, 200).Draw(t, "partitions")
		if got, want := eventlog.PartitionFor(key, n), kgos.Partition(&kgo.Record{Key: []byte(key)}, int(n)); int(got) != want {
			t.Fatalf("%q on %d: %d, franz-go %d", key, n, got, want)
		}
	})
	// Utils.murmur2 of Kafka's Java client, as its own tests have it, made positive.
	for key, hash := range map[string]int32{"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536,
		"a-little-bit-longer-string": -1486304829, "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971} {
		const n = 1 << 30
		if got, want := eventlog.PartitionFor(key, n), (hash&0x7fffffff)%n; got != want {
			t.Errorf("%q: %d, Kafka %d", key, got, want)
		}
	}
}

func TestTokenIsTheSameAfterALifeAsHeader(t *testing.T) {
	t.Parallel()
	topics := []string{"orders", "payments", "riders", "restaurants", "rider-locations", "payment-webhooks", "feed"}
	rapid.Check(t, func(t *rapid.T) {
		tok := eventlog.Token{}
		for range rapid.IntRange(1, 20).Draw(t, "entries") {
			tok.Add(rapid.SampledFrom(topics).Draw(t, "topic"), rapid.Int32Range(0, 100).Draw(t, "partition"), rapid.Int64Range(0, 1<<50).Draw(t, "offset"))
		}
		s := tok.String()
		if strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-") != "" {
			t.Fatalf("not fit for a header: %q", s)
		}
		got, err := eventlog.ParseToken(s)
		if err != nil || !cmp.Equal(tok, got) {
			t.Fatalf("%v %s", err, cmp.Diff(tok, got))
		}
	})
	if got, err := eventlog.ParseToken(""); got != nil || err != nil {
		t.Errorf("%v %v", got, err)
	}
}

func TestTokenOnlyRises(t *testing.T) {
	t.Parallel()
	tok := eventlog.Token{}
	tok.Add("orders", 1, 5)
	tok.Add("orders", 1, 3)
	tok.Merge(eventlog.Token{{Topic: "orders", Partition: 1}: 4, {Topic: "orders", Partition: 2}: 0})
	want := eventlog.Token{{Topic: "orders", Partition: 1}: 5, {Topic: "orders", Partition: 2}: 0}
	if diff := cmp.Diff(want, tok); diff != "" {
		t.Error(diff)
	}
}

func TestForeignTokensAreRefused(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"x", "AA", "AAA", "====", "Zm9vYmFyYmF6", "CAAA", "AP________________8BAA", "é", strings.Repeat("AAAA", 5000)} {
		if tok, err := eventlog.ParseToken(s); err == nil && s != strings.Repeat("AAAA", 5000) {
			t.Errorf("%.20q: %v", s, tok)
		}
	}
	rapid.Check(t, func(t *rapid.T) { // whatever comes, no panic and a bounded answer
		tok, _ := eventlog.ParseToken(rapid.String().Draw(t, "token"))
		if len(tok) > 64 {
			t.Fatal(len(tok))
		}
	})
}

func claim(term int64) *eventlog.Event {
	return &eventlog.Event{Type: eventlog.ShardClaimed, Term: term}
}
func event(term, seq int64) *eventlog.Event {
	return &eventlog.Event{Type: "ORDER_PAID", Term: term, Seq: seq, Version: 1}
}

func TestReaderRule(t *testing.T) {
	t.Parallel()
	type step struct {
		e      *eventlog.Event
		counts bool
	}
	for name, steps := range map[string][]step{
		"nothing counts before a claim":                   {{event(1, 1), false}, {event(0, 1), false}, {claim(2), false}, {claim(1), true}, {event(1, 1), true}},
		"a second copy is invalid":                        {{claim(1), true}, {event(1, 1), true}, {event(1, 1), false}, {event(1, 2), true}},
		"what comes behind a hole is invalid":             {{claim(1), true}, {event(1, 2), false}, {event(1, 1), true}, {event(1, 3), false}},
		"a deposed writer's are invalid":                  {{claim(1), true}, {event(1, 1), true}, {claim(2), true}, {event(1, 2), false}, {event(2, 1), true}},
		"the first claim of a term wins":                  {{claim(1), true}, {claim(1), false}, {event(1, 1), true}},
		"a claim does not skip terms":                     {{claim(1), true}, {claim(3), false}, {event(3, 1), false}, {event(1, 1), true}},
		"an event of a term to come does not count":       {{claim(1), true}, {event(2, 1), false}, {claim(2), true}, {event(2, 1), true}},
		"what carries no term is invalid at every moment": {{event(0, 0), false}, {event(0, 1), false}, {claim(0), false}, {claim(1), true}, {event(0, 1), false}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var r eventlog.Rule
			for i, s := range steps {
				if got := r.Accepts(s.e); got != s.counts {
					t.Errorf("step %d (%s term %d seq %d): %v", i, s.e.Type, s.e.Term, s.e.Seq, got)
				}
			}
		})
	}
}

// A reader that starts in the middle of a log, at a valid record and with the term and
// seq of that record, finds the same history as a reader of the whole log.
func TestReaderRuleStartsInMidLog(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var log []*eventlog.Event
		var full eventlog.Rule
		var counted []int
		for i := range 200 {
			e := event(full.Term+int64(rnd.IntN(3))-1, full.Seq+int64(rnd.IntN(3)))
			if rnd.IntN(8) == 0 {
				e = claim(full.Term + int64(rnd.IntN(3)))
			}
			log = append(log, e)
			if full.Accepts(e) {
				counted = append(counted, i)
			}
		}
		for k, from := range counted {
			r := eventlog.Rule{Term: log[from].Term, Seq: log[from].Seq} // of a claim: seq 0
			var got []int
			for i := from + 1; i < len(log); i++ {
				if r.Accepts(log[i]) {
					got = append(got, i)
				}
			}
			if !cmp.Equal(counted[k+1:], got, cmpopts.EquateEmpty()) {
				t.Fatalf("seed %d from %d: %s", seed, from, cmp.Diff(counted[k+1:], got))
			}
		}
	}
}
