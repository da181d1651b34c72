package eventlog_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// Rule.Take decides from a record's headers what all readers do with it.
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
		"a record of an old version":     {event("ce_type", "SHARD_SEEN"), false, "", false},
		"a claim of another term":        {event("ce_type", eventlog.ShardClaimed, "term", "6"), false, eventlog.SkipNotNext, false},
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

// Long texts in a record of another program do not get into the events that follow.
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

// Junk on any topic stops nobody. It is skipped, or, if the reader rule accepts it, only
// its own key is parked, whatever the size of its key and headers.
// FuzzParse: whatever a record contains, Parse does not panic. A record that Take takes
// has a subject that is an id, a time that JSON can have, and texts within the limits.
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
