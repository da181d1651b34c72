package eventlog_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// What all readers do with a record is decided in one place, from its headers.
func TestTakeIsTheOnePolicy(t *testing.T) {
	t.Parallel()
	headers := func(pairs ...string) *kgo.Record {
		r := &kgo.Record{Topic: eventlog.Orders, Value: []byte("{}")}
		for i := 0; i < len(pairs); i += 2 {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: pairs[i], Value: []byte(pairs[i+1])})
		}
		return r
	}
	event := func(pairs ...string) *kgo.Record {
		return headers(append([]string{"ce_type", "T", "ce_subject", "x", "ce_time", "2026-01-02T03:04:05Z", "version", "1", "term", "4", "seq", "8"}, pairs...)...)
	}
	for name, c := range map[string]struct {
		r       *kgo.Record
		take    bool
		skipped string
		fault   bool
	}{
		"the next event":                 {event(), true, "", false},
		"nothing":                        {headers(), false, eventlog.SkipNoEvent, true},
		"no term":                        {headers("ce_type", "T", "ce_subject", "x"), false, eventlog.SkipNoEvent, false},
		"a term that is no number":       {event("term", "x"), false, eventlog.SkipNoEvent, true},
		"a number after one that is not": {event("term", "x", "term", "4"), true, "", false},
		"a negative term":                {event("term", "-4"), false, eventlog.SkipNoEvent, false},
		"a seq beyond all numbers":       {event("seq", "99999999999999999999"), false, eventlog.SkipNotNext, true},
		"of a deposed writer":            {event("term", "3"), false, eventlog.SkipNotNext, false},
		"a second copy":                  {event("seq", "7"), false, eventlog.SkipNotNext, false},
		"no type":                        {event("ce_type", ""), true, "", true},
		"a type that is too long":        {event("ce_type", strings.Repeat("T", 1<<20)), true, "", true},
		"no time":                        {headers("ce_type", "T", "ce_subject", "x", "version", "1", "term", "4", "seq", "8"), true, "", true},
		"a time that is none":            {event("ce_time", "yesterday"), true, "", true},
		"a time that no JSON takes":      {event("ce_time", "9999-12-31T23:59:59-23:59"), true, "", true},
		"a version that is no number":    {event("version", "two"), true, "", true},
		"no version":                     {event("version", "0"), true, "", false},
		"no subject":                     {event("ce_subject", ""), false, eventlog.SkipNoAggregate, false},
		"a subject that is too long":     {event("ce_subject", strings.Repeat("x", 65)), false, eventlog.SkipNoAggregate, false},
		"a subject that is no text":      {event("ce_subject", "\xff\x00"), false, eventlog.SkipNoAggregate, false},
		"a claim with all of an event":   {event("ce_type", eventlog.ShardClaimed, "term", "5"), false, "", false},
		"a claim of another term":        {event("ce_type", eventlog.ShardClaimed, "term", "6"), false, eventlog.SkipNotNext, false},
		"a SEEN with all of an event":    {event("ce_type", eventlog.ShardSeen), false, "", false},
	} {
		rule := eventlog.Rule{Term: 4, Seq: 7}
		e, err := eventlog.ParseRecord(c.r)
		take, skipped := rule.Take(&e)
		if take != c.take || skipped != c.skipped || (e.Fault != nil) != c.fault || !errors.Is(err, e.Fault) {
			t.Errorf("%s: taken %v, skipped as %q, fault %v", name, take, skipped, e.Fault)
		}
		if valid := c.skipped == "" || c.skipped == eventlog.SkipNoAggregate; valid != (rule != eventlog.Rule{Term: 4, Seq: 7}) {
			t.Errorf("%s: the rule is at %+v", name, rule)
		}
		if e.Type == eventlog.ShardClaimed && take == false && skipped == "" && (e.Seq != 0 || rule != eventlog.Rule{Term: 5}) {
			t.Errorf("%s: seq %d, the rule is at %+v", name, e.Seq, rule)
		}
	}
}

// Texts of another program's records do not get into the events that follow.
func TestLongAttributesAreLeftOut(t *testing.T) {
	t.Parallel()
	r := &kgo.Record{Headers: []kgo.RecordHeader{{Key: "ce_type", Value: []byte("T")}}}
	for _, key := range []string{"ce_causationid", "ce_correlationid", "traceparent", "idempotency", "ce_source"} {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: key, Value: []byte(strings.Repeat("x", 1<<20))})
	}
	e, err := eventlog.ParseRecord(r)
	if err != nil || len(e.CausationID)+len(e.CorrelationID)+len(e.Traceparent)+len(e.Idempotency)+len(e.Source) > 1000 {
		t.Errorf("%v: %d, %d, %d, %d, %d bytes", err, len(e.CausationID), len(e.CorrelationID), len(e.Traceparent), len(e.Idempotency), len(e.Source))
	}
}

// Junk on any topic holds nobody up: it is skipped, or where it is valid by the rule
// its own key is parked, whatever the size of its key and headers.
func TestJunkHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		b := newBench(t, cfg, flaky)
		var l ledger
		start(t, b.runtime(), eventlog.Consumer{Name: "flaky", Topics: flaky.Topics, Each: func(_ context.Context, e eventlog.Event) error {
			if strings.HasPrefix(string(e.Data), "bad") {
				return eventlog.Poison(errors.New("it is bad"))
			}
			l.add(e)
			return nil
		}})
		b.produce(b.event(eventlog.Orders, "a", "T")...)
		eventlogtest.AppendJunk(t, cfg, testPartitions, flaky.Topics...)
		more := "4194304" // as a broker with a larger default lets the topic have it
		if _, err := b.adm.AlterTopicConfigs(t.Context(), []kadm.AlterConfig{{Name: "max.message.bytes", Value: &more}}, eventlog.PaymentWebhooks); err != nil {
			t.Fatal(err)
		}
		wide := eventlogtest.Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerBatchMaxBytes(4<<20))
		large := strings.Repeat("k", 900_000)
		for _, r := range []*kgo.Record{
			{Key: []byte(large)},
			{Key: []byte("k"), Headers: []kgo.RecordHeader{{Key: "large", Value: []byte(strings.Repeat("h", 3<<20))}}}, // more than the topic of the copies takes
			{Key: []byte("v"), Value: []byte("bad" + large)},
		} {
			e := eventlog.Event{ID: "1", Source: "/test", Type: "W", Time: time.Now(), Subject: "s", Data: []byte("bad")}
			made := e.NewRecord(eventlog.PaymentWebhooks, 0)
			made.Key, made.Headers = r.Key, append(made.Headers, r.Headers...)
			if r.Value != nil {
				made.Value = r.Value
			}
			if err := wide.ProduceSync(t.Context(), made).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		faulty := b.event(eventlog.Orders, "b", "T")
		last := faulty[len(faulty)-1]
		last.Headers = append(last.Headers, kgo.RecordHeader{Key: "ce_time", Value: []byte("yesterday")})
		last.Key = []byte("a") // its subject says whose it is
		b.produce(faulty...)
		b.produce(b.event(eventlog.Orders, "b", "T")...)
		b.produce(b.event(eventlog.Orders, "a", "T")...)
		b.produce(b.event(eventlog.PaymentWebhooks, "g", "W")...)
		eventually(t, "others flow", func() bool { return slices.Equal(l.of("a"), upTo(2)) && slices.Equal(l.of("g"), upTo(1)) })
		tools := &eventlog.DeadLetters{DB: b.db, Kafka: cfg}
		var classes []string
		eventually(t, "four dead letters", func() bool {
			list, _, err := tools.List(t.Context(), "", 100, "")
			classes = nil
			for _, d := range list {
				if classes = append(classes, d.Class); len(d.Key) > 512 {
					t.Fatal("a key of ", len(d.Key), " bytes")
				}
			}
			slices.Sort(classes)
			return err == nil && slices.Equal(classes, []string{"decode", "poison", "poison", "poison"})
		})
		eventually(t, "its key's next event waits", func() bool {
			return query[int](b, `SELECT count(*) FROM tomato.parked WHERE state = 'waiting' AND key = 'b'::bytea`) == 1
		})
	})
}

// FuzzParse: whatever a record holds, it is read without a panic, and what is
// taken has an id for a subject, a time that JSON takes and texts of some length.
func FuzzParse(f *testing.F) {
	eventlogtest.FuzzRecords(f, eventlog.Orders, "", func(t *testing.T, r *kgo.Record) {
		e, err := eventlog.ParseRecord(r)
		rule := eventlog.Rule{Term: e.Term, Seq: e.Seq - 1}
		if take, skipped := rule.Take(&e); take && (skipped != "" || e.Subject == "" || len(e.Subject) > 64) {
			t.Errorf("%q is taken, skipped as %q", e.Subject, skipped)
		}
		if _, jerr := e.Time.MarshalJSON(); jerr != nil || (err == nil) != (e.Fault == nil) || err == nil && len(e.Type)+len(e.ID) > 512 {
			t.Errorf("%v, %v: %d bytes of type, %d of id", jerr, err, len(e.Type), len(e.ID))
		}
	})
}
