package subjectkeys_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/eventlog"
	"tomato/eventlog/eventlogtest"
	"tomato/eventlog/subjectkeys"
)

func master(t testing.TB, b byte) *subjectkeys.Master {
	t.Helper()
	m, err := subjectkeys.NewMaster(bytes.Repeat([]byte{b}, subjectkeys.MinMasterBytes))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// start starts a keyring, which is closed at the end of t.
func start(t testing.TB, cfg eventlog.Config, masters ...*subjectkeys.Master) *subjectkeys.Keyring {
	t.Helper()
	k, err := subjectkeys.Start(deadline(t), subjectkeys.Config{Kafka: cfg, Masters: masters, Marks: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(k.Close)
	return k
}

func deadline(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

var layout = eventlog.Layout{Partitions: 2}

func seal(t *testing.T, k *subjectkeys.Keyring, s subjectkeys.Subject, text string) domain.Sealed {
	t.Helper()
	sealed, err := k.Seal(deadline(t), s, subjectkeys.FieldName, []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

func opens(t *testing.T, k *subjectkeys.Keyring, s subjectkeys.Subject, sealed domain.Sealed, want string) {
	t.Helper()
	if got, err := k.Open(deadline(t), s, subjectkeys.FieldName, sealed); err != nil || string(got) != want {
		t.Errorf("%s of %s opens as %q, %v, want %q", sealed, s, got, err, want)
	}
}

func isErased(t *testing.T, k *subjectkeys.Keyring, s subjectkeys.Subject, sealed domain.Sealed) {
	t.Helper()
	if got, err := k.Open(deadline(t), s, subjectkeys.FieldName, sealed); !errors.Is(err, subjectkeys.ErrErased) {
		t.Errorf("%s of %s opens as %q, %v, want that it was erased", sealed, s, got, err)
	}
}

// TestKeyring is the life of a person's key: two instances make it at once, both read
// what both have sealed, one erases it and the other sees that, and the person acts again.
func TestKeyring(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		eventlogtest.Topics(t, cfg, layout)
		a, b := start(t, cfg, master(t, 1)), start(t, cfg, master(t, 1))
		const people = 40
		var sealed [2][people]domain.Sealed
		var wg sync.WaitGroup
		for i := range people {
			for n, k := range []*subjectkeys.Keyring{a, b} {
				for range 3 {
					wg.Go(func() {
						s, err := k.Seal(t.Context(), subjectkeys.Rider(fmt.Sprint("r", i)), subjectkeys.FieldName, []byte("Una"))
						if err != nil {
							t.Error(err)
						}
						if n < 2 {
							mu.Lock()
							sealed[n][i] = s
							mu.Unlock()
						}
					})
				}
			}
		}
		wg.Wait()
		for i := range people {
			rider := subjectkeys.Rider(fmt.Sprint("r", i))
			if sealed[0][i] != sealed[1][i] {
				t.Errorf("two instances seal the same text of %s differently", rider)
			}
			opens(t, a, rider, sealed[1][i], "Una")
			opens(t, b, rider, sealed[0][i], "Una")
		}

		una := subjectkeys.Rider("r0")
		e, err := a.Erase(deadline(t), una, "ops:ops1", "asked by letter")
		if err != nil || e.Keys != 1 || e.Subject != una || e.By != "ops:ops1" || e.Reason != "asked by letter" {
			t.Fatalf("%+v, %v", e, err)
		}
		isErased(t, a, una, sealed[0][0])
		until(t, "the other instance has heard of the erasure", func() bool {
			_, err := b.Open(t.Context(), una, subjectkeys.FieldName, sealed[0][0])
			return errors.Is(err, subjectkeys.ErrErased)
		})
		opens(t, b, subjectkeys.Rider("r1"), sealed[0][1], "Una")

		// A repeat is recorded and destroys nothing. Then the rider acts again.
		if e, err = b.Erase(deadline(t), una, "cli:root", "again"); err != nil || e.Keys != 0 {
			t.Errorf("%+v, %v", e, err)
		}
		again := seal(t, b, una, "Una")
		if again == sealed[0][0] {
			t.Error("sealed with the destroyed key")
		}
		opens(t, a, una, again, "Una")
		isErased(t, b, una, sealed[0][0])

		// An instance that starts later has the same, and the audit.
		c := start(t, cfg, master(t, 2), master(t, 1))
		opens(t, c, una, again, "Una")
		isErased(t, c, una, sealed[0][0])
		opens(t, c, subjectkeys.Rider("r1"), sealed[0][1], "Una")
		all, more, ok := c.Erasures("", 10)
		if len(all) != 2 || more || !ok || all[0].Reason != "again" || all[1].Keys != 1 {
			t.Errorf("erasures %+v, %v, %v", all, more, ok)
		}
		page, more, ok := c.Erasures("", 1)
		if len(page) != 1 || !more || !ok {
			t.Errorf("the first page: %+v, %v, %v", page, more, ok)
		}
		if page, more, ok = c.Erasures(page[0].ID, 1); len(page) != 1 || more || !ok || page[0].Keys != 1 {
			t.Errorf("the second page: %+v, %v, %v", page, more, ok)
		}

		// The rider's last position has a tombstone.
		if n := tombstones(t, cfg, eventlog.RiderLocations, "r0"); n != 2 {
			t.Errorf("%d tombstones of the position, want one for each erasure", n)
		}
	})
}

var mu sync.Mutex // of sealed in TestKeyring

func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	ctx := deadline(t)
	for !is() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("never: %s", what)
		}
	}
}

// tombstones counts the tombstones of a key.
func tombstones(t *testing.T, cfg eventlog.Config, topic, key string) (n int) {
	t.Helper()
	each(t, cfg, topic, func(r *kgo.Record) {
		if string(r.Key) == key && r.Value == nil {
			n++
		}
	})
	return n
}

// each calls fn for every record of a topic.
func each(t *testing.T, cfg eventlog.Config, topic string, fn func(*kgo.Record)) {
	t.Helper()
	ends, err := eventlog.EndOffsets(deadline(t), eventlogtest.Client(t, cfg), topic)
	if err != nil {
		t.Fatal(err)
	}
	ranges := map[eventlog.TopicPartition]eventlog.Range{}
	for tp, end := range ends {
		ranges[tp] = eventlog.Range{To: end}
	}
	if err := eventlog.Read(deadline(t), cfg, ranges, func(e *eventlog.Event) error { fn(e.Record); return nil }); err != nil {
		t.Fatal(err)
	}
}

// TestMasterKeys: an instance that lacks a master key does not start, and says which one
// is missing. Rewrap makes the old one superfluous, and what was sealed stays readable.
func TestMasterKeys(t *testing.T) {
	t.Parallel()
	eventlogtest.Each(t, func(t *testing.T, cfg eventlog.Config) {
		eventlogtest.Topics(t, cfg, layout)
		old, newest := master(t, 1), master(t, 2)
		var logged eventlogtest.LogText
		a, err := subjectkeys.Start(deadline(t), subjectkeys.Config{Kafka: cfg, Masters: []*subjectkeys.Master{old}, Marks: true, Log: slog.New(slog.NewTextHandler(&logged, nil))})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(a.Close)
		una, gone := subjectkeys.Rider("una"), subjectkeys.Rider("gone")
		sealed, lost := seal(t, a, una, "Una"), seal(t, a, gone, "Gil")
		for i := range 20 {
			seal(t, a, subjectkeys.Customer(fmt.Sprint("c", i)), "x")
		}
		if _, err := a.Erase(deadline(t), gone, "ops:o", "r"); err != nil {
			t.Fatal(err)
		}

		refused := func() {
			t.Helper()
			_, err := subjectkeys.Start(deadline(t), subjectkeys.Config{Kafka: cfg, Masters: []*subjectkeys.Master{newest}})
			var missing *subjectkeys.MissingMasterError
			if !errors.As(err, &missing) || missing.Missing[old.Fingerprint()] == 0 || !strings.Contains(err.Error(), old.Fingerprint()) {
				t.Errorf("started without its master key: %v", err)
			}
		}
		refused()

		b := start(t, cfg, newest, old)
		fresh := seal(t, b, subjectkeys.Rider("fresh"), "Fay")
		// An instance that does not have the new master key yet says so, and does not say
		// that the rider was erased.
		until(t, "the old instance has read the new key", func() bool { return a.Held() == b.Held() })
		if _, err := a.Open(deadline(t), subjectkeys.Rider("fresh"), subjectkeys.FieldName, fresh); !errors.Is(err, eventlog.ErrUnavailable) {
			t.Errorf("opened without the master key: %v", err)
		}
		if said := logged.String(); !strings.Contains(said, "level=ERROR") || !strings.Contains(said, newest.Fingerprint()) {
			t.Errorf("logged without the master key: %s", said)
		}
		refused()
		done, err := b.Rewrap(deadline(t), nil)
		if err != nil || done.Keys != 22 || done.Rewrapped != 21 || done.Master != newest.Fingerprint() {
			t.Fatalf("%+v, %v", done, err)
		}
		if done, err = b.Rewrap(deadline(t), nil); err != nil || done.Rewrapped != 0 || done.Keys != 22 {
			t.Errorf("a repeat: %+v, %v", done, err)
		}
		c := start(t, cfg, newest)
		opens(t, c, una, sealed, "Una")
		opens(t, c, subjectkeys.Rider("fresh"), fresh, "Fay")
		isErased(t, c, gone, lost)
		if c.Held() != 22 {
			t.Errorf("%d keys, want 22", c.Held())
		}
		if s := seal(t, c, una, "Una"); s != sealed {
			t.Error("after rewrapping, the same text is sealed differently")
		}
	})
}

// TestADestroyedKeyStaysDestroyed: a new wrapping that is appended behind the tombstone of
// its key, as by a rewrap that was under way, brings nothing back.
func TestADestroyedKeyStaysDestroyed(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, layout)
	a := start(t, cfg, master(t, 1))
	una := subjectkeys.Rider("una")
	sealed := seal(t, a, una, "Una")
	var record *kgo.Record
	each(t, cfg, eventlog.SubjectKeys, func(r *kgo.Record) { record = r })
	if _, err := a.Erase(deadline(t), una, "ops:o", "r"); err != nil {
		t.Fatal(err)
	}
	client := eventlogtest.Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	back := &kgo.Record{Topic: eventlog.SubjectKeys, Key: record.Key, Value: record.Value}
	if err := client.ProduceSync(deadline(t), back).FirstErr(); err != nil {
		t.Fatal(err)
	}
	until(t, "the key has a second tombstone", func() bool { return tombstones(t, cfg, eventlog.SubjectKeys, string(record.Key)) == 2 })
	isErased(t, a, una, sealed)
	isErased(t, start(t, cfg, master(t, 1)), una, sealed)
}

// TestJunkOnTheTopic: whatever another program writes to the topic is skipped.
func TestJunkOnTheTopic(t *testing.T) {
	t.Parallel()
	cfg := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, cfg, layout)
	a := start(t, cfg, master(t, 1))
	una := subjectkeys.Rider("una")
	sealed := seal(t, a, una, "Una")
	var key string
	var value []byte
	each(t, cfg, eventlog.SubjectKeys, func(r *kgo.Record) { key, value = string(r.Key), r.Value })
	client := eventlogtest.Client(t, cfg, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	id := key[len(key)-16:]
	for k, v := range map[string][]byte{
		"": []byte("x"), "\x00\xff": []byte("x"), "customer/c1": value, "customer/c1/0000000000000000": value, "customer/c1/0000000000000001": value,
		"rider/una/0000000000000002": []byte(`{"v":1,"master":"0123","wrapped":"AA"}`), "rider/una/0000000000000003": []byte("[]"),
		"rider/una/0000000000000004": []byte(`{"v":2}`), "erased/x": []byte("{}"), "erased/rider/una/x": []byte("[]"), "erased/rider/una/y": nil,
		"rider/other/" + id: value, "rider/other2/0000000000000005": nil, "mark": nil,
	} {
		if err := client.ProduceSync(deadline(t), &kgo.Record{Topic: eventlog.SubjectKeys, Key: []byte(k), Value: v}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range []*subjectkeys.Keyring{a, start(t, cfg, master(t, 1))} {
		opens(t, k, una, sealed, "Una")
		if k.Held() != 1 {
			t.Errorf("%d keys, want 1", k.Held())
		}
	}
}

// TestUnknownIsNotErasedWithoutTheBrokers: a key that is not known is called destroyed
// only if the topic could be read.
func TestUnknownIsNotErasedWithoutTheBrokers(t *testing.T) {
	t.Parallel()
	b, err := eventlog.StartBroker(t.TempDir(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	cfg := eventlog.Config{Brokers: []string{b.Addr()}}
	eventlogtest.Topics(t, cfg, layout)
	other := eventlogtest.Embedded(t)
	eventlogtest.Topics(t, other, layout)
	una := subjectkeys.Rider("una")
	foreign := seal(t, start(t, other, master(t, 1)), una, "Una")
	a := start(t, cfg, master(t, 1))
	own := seal(t, a, una, "Una")
	b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := a.Open(ctx, una, subjectkeys.FieldName, foreign); !errors.Is(err, eventlog.ErrUnavailable) || errors.Is(err, subjectkeys.ErrErased) {
		t.Errorf("without brokers: %v", err)
	}
	if _, err := a.Seal(ctx, subjectkeys.Rider("new"), subjectkeys.FieldName, nil); !errors.Is(err, eventlog.ErrUnavailable) {
		t.Errorf("a key was made without brokers: %v", err)
	}
	opens(t, a, una, own, "Una") // what is known goes on working
}

// TestBytesPerKey bounds the memory of a key. BenchmarkMillionKeys has the figure of
// docs/privacy.md.
func TestBytesPerKey(t *testing.T) {
	const n = 100_000
	before, after := subjectkeys.RingMemory(n)
	per := float64(after-before) / float64(n)
	t.Logf("%d keys: %.0f bytes per key", n, per)
	if per > 400 {
		t.Errorf("a key takes %.0f bytes of memory, want at most 400", per)
	}
}
