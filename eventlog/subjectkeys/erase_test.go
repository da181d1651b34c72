package subjectkeys

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
)

// ringTest has a topic of keys, and starts keyrings on it.
type ringTest struct {
	*testing.T
	ctx   context.Context
	cfg   eventlog.Config
	first *Master
}

func newRingTest(t *testing.T) *ringTest {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	x := &ringTest{T: t, ctx: ctx, cfg: eventlogtest.Embedded(t), first: masterOf(t, 1)}
	eventlogtest.Topics(t, x.cfg, eventlog.Layout{Partitions: 1})
	return x
}

func masterOf(t *testing.T, b byte) *Master {
	t.Helper()
	m, err := NewMaster([]byte(strings.Repeat(string(rune('a'+b)), MinMasterBytes)))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// start starts a keyring. marks says whether it is one of a server.
func (x *ringTest) start(marks bool, masters ...*Master) *Keyring {
	x.Helper()
	k, err := Start(x.ctx, Config{Kafka: x.cfg, Masters: masters, Marks: marks, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		x.Fatal(err)
	}
	x.Cleanup(k.Close)
	return k
}

func (x *ringTest) append(k *Keyring, key string, value []byte) {
	x.Helper()
	offset, err := k.append(x.ctx, &kgo.Record{Key: []byte(key), Value: value})
	if err != nil || k.await(x.ctx, offset+1) != nil {
		x.Fatal(err)
	}
}

func (x *ringTest) seal(k *Keyring, s Subject) (text string, id KeyID) {
	x.Helper()
	sealed, err := k.Seal(x.ctx, s, FieldName, []byte("Una"))
	if err != nil {
		x.Fatal(err)
	}
	parts, err := parse(sealed)
	if err != nil {
		x.Fatal(err)
	}
	return string(sealed), parts.key
}

// records returns the values of a key's records, in the order of the log.
func (x *ringTest) records(k *Keyring, key string) (values []string) {
	x.Helper()
	end, err := k.end(x.ctx)
	if err != nil {
		x.Fatal(err)
	}
	err = k.scan(x.ctx, end, func(r *kgo.Record) error {
		if string(r.Key) == key {
			values = append(values, string(r.Value))
		}
		return nil
	})
	if err != nil {
		x.Fatal(err)
	}
	return values
}

// TestAnErasureThatWasBegunIsFinished: the record of who asked for an erasure is on the
// topic before the first tombstone, so that a crash in between loses nothing. A server
// that starts finishes the erasure. Before, the record came last, and after a crash nobody
// knew who had destroyed the keys, or that some were still there.
func TestAnErasureThatWasBegunIsFinished(t *testing.T) {
	t.Parallel()
	x := newRingTest(t)
	tool := x.start(false, x.first)
	una := Rider("una")
	text, id := x.seal(tool, una)
	e, err := tool.beginErasure(x.ctx, una, "cli:root", "letter-17") // and then it crashes
	if err != nil {
		t.Fatal(err)
	}
	all, _, _ := tool.Erasures("", 10)
	if len(all) != 1 || all[0].ID != e.ID || !all[0].CompletedAt.IsZero() || all[0].By != "cli:root" || all[0].Reason != "letter-17" || all[0].Keys != 1 {
		t.Fatalf("begun: %+v", all)
	}
	if _, err := tool.open(x.ctx, una, FieldName, domain.Sealed(text)); !errors.Is(err, ErrErased) {
		t.Errorf("an erasure that is begun: %v", err)
	}
	// The rider acts again before anybody finishes the erasure. That key stays.
	again, _ := x.seal(tool, una)
	if n := len(x.records(tool, recordKey(una, id))); n != 1 {
		t.Fatalf("%d records of the key: the test must begin before the tombstone", n)
	}

	server := x.start(true, x.first)
	for all[0].CompletedAt.IsZero() {
		if x.ctx.Err() != nil {
			t.Fatal("the server never finishes the erasure")
		}
		time.Sleep(5 * time.Millisecond)
		all, _, _ = server.Erasures("", 10)
	}
	if len(all) != 1 || all[0].ID != e.ID || all[0].By != "cli:root" || all[0].Keys != 1 || all[0].At != e.At {
		t.Errorf("finished: %+v", all)
	}
	if got := x.records(server, recordKey(una, id)); len(got) != 2 || got[1] != "" {
		t.Errorf("the records of the key: %q, want a tombstone at the end", got)
	}
	if plain, err := server.open(x.ctx, una, FieldName, domain.Sealed(again)); err != nil || string(plain) != "Una" {
		t.Errorf("a key from after the erasure: %q, %v", plain, err)
	}
	if n, err := server.FinishErasures(x.ctx); n != 0 || err != nil {
		t.Errorf("finished again: %d, %v", n, err)
	}
	// Erase writes in this order, too.
	bo := Rider("bo")
	_, id = x.seal(server, bo)
	if e, err = server.Erase(x.ctx, bo, "ops:o", "r"); err != nil || e.CompletedAt.IsZero() {
		t.Fatalf("%+v, %v", e, err)
	}
	var order []string
	end, err := server.end(x.ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.scan(x.ctx, end, func(r *kgo.Record) error {
		switch {
		case string(r.Key) == erasedPrefix+"rider/bo/"+e.ID:
			order = append(order, fmt.Sprint("begun ", strings.Contains(string(r.Value), `"begun":true`)))
		case string(r.Key) == recordKey(bo, id) && r.Value == nil:
			order = append(order, "tombstone")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(order, ", "); got != "begun true, tombstone, begun false" {
		t.Errorf("an erasure appends %s", got)
	}
	// The older record of an erasure does not replace the newer one.
	e.CompletedAt = time.Time{}
	server.mu.Lock()
	server.takeErasure(e)
	server.mu.Unlock()
	if all, _, _ = server.Erasures("", 10); all[0].ID != e.ID || all[0].CompletedAt.IsZero() {
		t.Error("begun again")
	}
}

// TestAKeyThatAnErasureNamesNeverComesBack: a rewrap that crashed may leave a new wrapping
// behind the tombstone of its key. Compaction then removes the tombstone, because the
// wrapping is newer. Only the record of the erasure says that the key was destroyed.
// Before, an instance that started then had the key again.
func TestAKeyThatAnErasureNamesNeverComesBack(t *testing.T) {
	t.Parallel()
	x, compacted := newRingTest(t), newRingTest(t)
	k := x.start(false, x.first)
	una := Rider("una")
	text, id := x.seal(k, una)
	wrapping := x.records(k, recordKey(una, id))[0]
	e, err := k.Erase(x.ctx, una, "ops:o", "r")
	if err != nil {
		t.Fatal(err)
	}
	name, value, err := e.encode()
	if err != nil {
		t.Fatal(err)
	}
	writer := compacted.start(false, x.first)
	compacted.append(writer, name, value)
	compacted.append(writer, recordKey(una, id), []byte(wrapping))
	for _, k := range []*Keyring{writer, compacted.start(false, x.first)} {
		if plain, err := k.open(x.ctx, una, FieldName, domain.Sealed(text)); !errors.Is(err, ErrErased) || k.Held() != 0 {
			t.Errorf("%d keys; the text opens as %q, %v", k.Held(), plain, err)
		}
	}
	// A server destroys the wrapping again, so that it leaves the disk.
	server := compacted.start(true, x.first)
	for records := compacted.records(server, recordKey(una, id)); records[len(records)-1] != ""; records = compacted.records(server, recordKey(una, id)) {
		if x.ctx.Err() != nil {
			t.Fatal("the wrapping stays on the topic")
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestAForeignTombstoneBuriesNothing: a tombstone destroys a key only if it names the key's
// own subject. Before, a tombstone with the right id and another subject made every
// instance destroy the key when it was wrapped anew.
func TestAForeignTombstoneBuriesNothing(t *testing.T) {
	t.Parallel()
	x := newRingTest(t)
	k := x.start(true, x.first)
	una := Rider("una")
	text, id := x.seal(k, una)
	early := id + 1
	x.append(k, recordKey(Rider("other"), id), nil)
	x.append(k, recordKey(Rider("other"), early), nil) // before there is a key with this id
	wrapped := x.first.wrap(recordKey(una, early), make([]byte, keyBytes))
	value, err := encodeKey(x.first, &wrapped, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	x.append(k, recordKey(una, early), value)
	x.append(k, recordKey(una, id), []byte(x.records(k, recordKey(una, id))[0])) // as a rewrap does
	for _, k := range []*Keyring{k, x.start(true, x.first)} {
		if plain, err := k.open(x.ctx, una, FieldName, domain.Sealed(text)); err != nil || string(plain) != "Una" || k.Held() != 2 {
			t.Errorf("%d keys; the text opens as %q, %v", k.Held(), plain, err)
		}
	}
	if got := x.records(k, recordKey(una, id)); len(got) != 2 || got[1] == "" {
		t.Errorf("the records of the key: %q", got)
	}
}

// TestTheFirstKeyInTheLogIsUsed: the log decides which of two keys of a subject is used,
// not createdAt, and rewrapping does not change it.
func TestTheFirstKeyInTheLogIsUsed(t *testing.T) {
	t.Parallel()
	x := newRingTest(t)
	old, newest := x.first, masterOf(t, 2)
	writer := x.start(false, old)
	una := Rider("una")
	put := func(id KeyID, m *Master, createdAt time.Time) {
		t.Helper()
		key := make([]byte, keyBytes)
		key[0] = byte(id)
		wrapped := m.wrap(recordKey(una, id), key)
		value, err := encodeKey(m, &wrapped, createdAt)
		if err != nil {
			t.Fatal(err)
		}
		x.append(writer, recordKey(una, id), value)
	}
	put(7, old, time.Now())
	put(8, newest, time.Now().Add(-time.Hour)) // of an instance that already has the newest one
	other, _ := x.seal(writer, Rider("other"))
	k := x.start(false, newest, old)
	if _, id := x.seal(k, una); id != 7 {
		t.Errorf("sealed with %s, want the first key in the log", id)
	}
	done, err := k.Rewrap(x.ctx, nil)
	if err != nil || done.Keys != 3 || done.Rewrapped != 3 {
		t.Fatalf("%+v, %v", done, err)
	}
	// As compaction leaves it: the last record of each key, in the order of the log.
	compacted := newRingTest(t)
	end, err := k.end(x.ctx)
	if err != nil {
		t.Fatal(err)
	}
	last := map[string]int64{}
	each := func(fn func(*kgo.Record)) {
		t.Helper()
		if err := k.scan(x.ctx, end, func(r *kgo.Record) error { fn(r); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	each(func(r *kgo.Record) { last[string(r.Key)] = r.Offset })
	copier := compacted.start(false, newest)
	each(func(r *kgo.Record) {
		if last[string(r.Key)] == r.Offset {
			compacted.append(copier, string(r.Key), r.Value)
		}
	})
	later := compacted.start(false, newest)
	if _, id := compacted.seal(later, una); id != 7 {
		t.Errorf("after rewrapping, sealed with %s", id)
	}
	if plain, err := later.open(x.ctx, Rider("other"), FieldName, domain.Sealed(other)); err != nil || string(plain) != "Una" {
		t.Errorf("%q, %v", plain, err)
	}
	if done, err = later.Rewrap(x.ctx, nil); err != nil || done.Rewrapped != 0 {
		t.Errorf("a repeat: %+v, %v", done, err)
	}
}

// TestRewrapLacksAMasterKey: a key that came after the start, under a master key that is
// not configured, is an error and no panic. PlanRewrap says under what the keys are.
func TestRewrapLacksAMasterKey(t *testing.T) {
	t.Parallel()
	x := newRingTest(t)
	stranger := masterOf(t, 3)
	k, other := x.start(false, masterOf(t, 2), x.first), x.start(false, stranger)
	x.seal(k, Rider("una"))
	x.seal(other, Rider("bo"))
	plan, err := k.PlanRewrap(x.ctx)
	if err != nil || plan.Master != masterOf(t, 2).Fingerprint() || plan.Under != 1 || len(plan.Others) != 1 || plan.Others[stranger.Fingerprint()] != 1 {
		t.Errorf("%+v, %v", plan, err)
	}
	var missing *MissingMasterError
	if _, err := k.Rewrap(x.ctx, nil); !errors.As(err, &missing) || missing.Missing[stranger.Fingerprint()] != 1 {
		t.Errorf("%v", err)
	}
	sealed, _ := x.seal(other, Rider("bo"))
	if _, err := k.Open(x.ctx, Rider("bo"), FieldName, domain.Sealed(sealed)); !errors.As(err, &missing) || !errors.Is(err, eventlog.ErrUnavailable) {
		t.Errorf("opened without the master key: %v", err)
	}
}

// TestTheStartWaitsAsLongAsRecordsCome: the limit of the start is for one record, not for
// all of them. Before, an installation with more keys than can be read in a minute did not
// start.
func TestTheStartWaitsAsLongAsRecordsCome(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var logged strings.Builder
		k := &Keyring{log: slog.New(slog.NewTextHandler(&logged, nil)), moved: make(chan struct{})}
		go func() {
			for i := range int64(5) {
				time.Sleep(startStall - time.Second)
				k.take([]*kgo.Record{{Offset: i, Key: []byte(markKey), Timestamp: time.Now()}})
			}
		}()
		if err := k.awaitStart(t.Context(), 5); err != nil {
			t.Errorf("after %v of progress: %v", 5*startStall, err)
		}
		if !strings.Contains(logged.String(), "offset=3 of=5") {
			t.Errorf("it does not say how far it is: %s", logged.String())
		}
		before := time.Now()
		err := k.awaitStart(t.Context(), 6)
		if err == nil || !strings.Contains(err.Error(), "offset 5 of 6") || time.Since(before) != startStall {
			t.Errorf("after %v without a record: %v", time.Since(before), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := k.awaitStart(ctx, 6); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}
