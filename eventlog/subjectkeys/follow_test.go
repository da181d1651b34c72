package subjectkeys

import (
	"context"
	"testing"
	"time"

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

// TestOpenEventChangesNothingElse: the data of an event keeps every byte beside the
// personal fields, and a text that cannot be read is shown as erased.
func TestOpenEventChangesNothingElse(t *testing.T) {
	t.Parallel()
	c := testCipher(t, Customer("c1"))
	sealed := string(c.Seal(FieldDeliverTo, []byte(`{"address":"<4> & Church"}`)))
	keys := oneCipher{c}
	for data, want := range map[string]string{
		`{"n":1.50, "deliverTo" : "` + sealed + `","x":"` + sealed + `" }`: `{"n":1.50, "deliverTo" : {"address":"\u003c4\u003e \u0026 Church"},"x":"` + sealed + `" }`,
		`{"deliverTo":"s1.damaged"}`:                                       `{"deliverTo":{"erased":true}}`,
		`{"riderId":"r1","riderName":"s1.damaged","a":[{"deliverTo":1}]}`:  `{"riderId":"r1","riderName":"erased","a":[{"deliverTo":1}]}`,
		`{"deliverTo":{"address":"s1.x"}}`:                                 `{"deliverTo":{"address":"s1.x"}}`,
		`{"a":"b"}`:                                                        `{"a":"b"}`,
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
