package subjectkeys

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// TestNeedsMark: the segment of a tombstone is closed by a record that comes more than an
// hour later. If none comes by itself, a mark is needed, and one is enough.
func TestNeedsMark(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m, err := NewMaster(make([]byte, MinMasterBytes))
	if err != nil {
		t.Fatal(err)
	}
	k, err := Start(ctx, Config{Kafka: cfg, Masters: []*Master{m}})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	now := time.Now()
	in := func(d time.Duration) bool { return k.needsMark(now.Add(d)) }
	if _, err := k.Seal(ctx, Rider("r"), FieldName, nil); err != nil {
		t.Fatal(err)
	}
	if in(24 * time.Hour) {
		t.Error("a mark without a tombstone")
	}
	if _, err := k.Erase(ctx, Rider("r"), "ops:o", "x"); err != nil {
		t.Fatal(err)
	}
	if in(time.Hour) || !in(2*time.Hour) {
		t.Errorf("after an hour %v, after two %v", in(time.Hour), in(2*time.Hour))
	}
	if err := k.mark(ctx); err != nil { // too early to close the segment
		t.Fatal(err)
	}
	if err := k.readToEnd(ctx); err != nil {
		t.Fatal(err)
	}
	if !in(2 * time.Hour) {
		t.Error("a record within the hour is no help")
	}
	k.take([]*kgo.Record{{Offset: 99, Key: []byte(markKey), Value: []byte("{}"), Timestamp: now.Add(90 * time.Minute)}})
	if in(2 * time.Hour) {
		t.Error("a second mark for one tombstone")
	}
}

// TestALostKeyIsNotErased: a key that is not on the topic, or that only a newer build can
// read, was not destroyed by anybody. After an erasure it was, whether or not there still
// is a tombstone.
func TestALostKeyIsNotErased(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, eventlog.Layout{Partitions: 1})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	m, err := NewMaster(make([]byte, MinMasterBytes))
	if err != nil {
		t.Fatal(err)
	}
	metrics := prometheus.NewRegistry()
	k, err := Start(ctx, Config{Kafka: cfg, Masters: []*Master{m}, Registry: metrics})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	lost, newer := testCipher(t, Rider("lost")), testCipher(t, Rider("newer"))
	newer.id++
	if _, err := k.append(ctx, &kgo.Record{Key: []byte(recordKey(newer.subject, newer.id)), Value: []byte(`{"v":2,"key":"in another form"}`)}); err != nil {
		t.Fatal(err)
	}
	open := func(c *Cipher, want error, when string) {
		t.Helper()
		for range 2 { // the second one from memory
			if got, err := k.Open(ctx, c.subject, FieldName, c.Seal(FieldName, []byte("Una"))); !errors.Is(err, want) {
				t.Errorf("%s: the text of %s opens as %q, %v, want %v", when, c.subject, got, err, want)
			}
		}
	}
	open(lost, ErrLost, "at first")
	open(newer, ErrLost, "at first")
	if errors.Is(ErrLost, ErrErased) || !errors.Is(ErrLost, ErrUnreadable) {
		t.Error("ErrLost is no ErrUnreadable, or an ErrErased")
	}
	families, err := metrics.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := 0.0
	for _, f := range families {
		if f.GetName() == "tomato_unreadable_texts_total" {
			counted = f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	if counted != 4 {
		t.Errorf("%v unreadable texts are counted, want 4", counted)
	}
	sealed, err := k.Seal(ctx, Rider("destroyed"), FieldName, []byte("Una"))
	if err != nil {
		t.Fatal(err)
	}
	k.mu.RLock()
	id := k.ring.firstOf(Rider("destroyed").hash())
	k.mu.RUnlock()
	// An erasure that failed behind its tombstones has destroyed the key all the same.
	if offset, err := k.append(ctx, &kgo.Record{Key: []byte(recordKey(Rider("destroyed"), id))}); err != nil || k.await(ctx, offset+1) != nil {
		t.Fatal(err)
	}
	if _, err := k.Open(ctx, Rider("destroyed"), FieldName, sealed); !errors.Is(err, ErrErased) {
		t.Errorf("a key with a tombstone: %v", err)
	}
	if _, err := k.Erase(ctx, lost.subject, "ops:o", "x"); err != nil {
		t.Fatal(err)
	}
	open(lost, ErrErased, "after an erasure")
	open(newer, ErrLost, "after the erasure of another one")
}

// TestOpenEventChangesNothingElse: the data of an event keeps every byte beside the
// personal fields, and a text that cannot be read is shown as erased.
func TestOpenEventChangesNothingElse(t *testing.T) {
	t.Parallel()
	c := testCipher(t, Customer("c1"))
	sealed := string(c.Seal(FieldDeliverTo, []byte(`{"address":"<4> & Church"}`)))
	reason := string(c.Seal(FieldReason, []byte("I am ill")))
	keys := oneCipher{c}
	for data, want := range map[string]string{
		`{"n":1.50, "deliverTo" : "` + sealed + `","x":"` + sealed + `" }`: `{"n":1.50, "deliverTo" : {"address":"\u003c4\u003e \u0026 Church"},"x":"` + sealed + `" }`,
		`{"deliverTo":"s1.damaged"}`:                                       `{"deliverTo":{"erased":true}}`,
		`{"riderId":"r1","riderName":"s1.damaged","a":[{"deliverTo":1}]}`:  `{"riderId":"r1","riderName":"erased","a":[{"deliverTo":1}]}`,
		`{"deliverTo":{"address":"s1.x"}}`:                                 `{"deliverTo":{"address":"s1.x"}}`,
		`{"a":"b"}`:                                                        `{"a":"b"}`,
		`{"by":"customer","reason":"` + reason + `"}`:                      `{"by":"customer","reason":"I am ill"}`,
		`{"reason":"` + reason + `","by":"restaurant"}`:                    `{"reason":"` + reason + `","by":"restaurant"}`,
		`{"riderId":"r1","by":"rider","reason":"` + reason + `"}`:          `{"riderId":"r1","by":"rider","reason":"erased"}`,
		`{"by":"customer","reason":"s1. is what I typed"}`:                 `{"by":"customer","reason":"s1. is what I typed"}`,
	} {
		if got, err := OpenEvent(t.Context(), keys, "c1", []byte(data)); err != nil || string(got) != want {
			t.Errorf("%s\nis opened as %s, %v\nwant %s", data, got, err, want)
		}
	}
	for _, bad := range []string{`["s1."]`, `{"s1.":`, `"s1."`} {
		if got, err := OpenEvent(t.Context(), keys, "c1", []byte(bad)); err == nil {
			t.Errorf("%s is opened as %s", bad, got)
		}
	}
}

// oneCipher is an Opener with one key.
type oneCipher struct{ *Cipher }

func (o oneCipher) Open(_ context.Context, s Subject, field string, text domain.Sealed) ([]byte, error) {
	if s != o.subject {
		return nil, ErrUnreadable
	}
	return o.Cipher.Open(field, text)
}
