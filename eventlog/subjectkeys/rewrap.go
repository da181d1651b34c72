package subjectkeys

import (
	"context"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// Rewrapped says what Rewrap has done.
type Rewrapped struct {
	Keys      int    `json:"keys"`      // on the topic
	Rewrapped int    `json:"rewrapped"` // that were wrapped under another master key before
	Master    string `json:"master"`    // the fingerprint of the master key that all are wrapped under now
}

// RewrapPlan says what Rewrap would do.
type RewrapPlan struct {
	Master string         // the fingerprint of the newest master key
	Under  int            // keys that are wrapped under it
	Others map[string]int // keys that are wrapped under other master keys, by their fingerprints
}

// PlanRewrap returns what Rewrap would do now. If no key is wrapped under the newest
// master key, the servers may not know it: it may be mistyped.
func (k *Keyring) PlanRewrap(ctx context.Context) (RewrapPlan, error) {
	if err := k.readToEnd(ctx); err != nil {
		return RewrapPlan{}, err
	}
	k.mu.RLock()
	defer k.mu.RUnlock()
	plan := RewrapPlan{Master: k.config.Masters[0].fingerprint, Others: map[string]int{}}
	for held := range k.ring.all() {
		if held.master == 0 {
			plan.Under++
		} else {
			plan.Others[k.fingerprints[held.master]]++
		}
	}
	return plan, nil
}

// rewrapAtOnce is how many records are under way at most.
const rewrapAtOnce = 1000

// Rewrap wraps all keys under the first of the master keys. Keys are rewrapped in the
// order of the log. If a key of a subject is rewrapped, so are the later ones of the same
// subject, even if they need it not, so that the first one stays the first. If Rewrap
// fails, some are rewrapped; a repeat does the others. progress, if it is not nil, is
// called now and then with the number of keys that are done, and the number of all. It
// fails with a *MissingMasterError if a key is wrapped under a master key that is not
// configured.
//
// Rewrap reads the topic to its end first, and skips keys that are destroyed. A key that
// is destroyed while Rewrap runs stays destroyed, although its new wrapping may come
// behind the tombstone: the record of the erasure names the key, and nobody takes it in
// again. Rewrap looks for such tombstones afterwards and repeats them, so that compaction
// removes the new wrapping.
func (k *Keyring) Rewrap(ctx context.Context, progress func(done, all int)) (Rewrapped, error) {
	if err := k.readToEnd(ctx); err != nil {
		return Rewrapped{}, err
	}
	newest := k.config.Masters[0]
	out := Rewrapped{Master: newest.fingerprint}
	end, err := k.end(ctx)
	if err != nil {
		return out, eventlog.UnavailableFrom(dependency, err)
	}
	var written []string
	moved := map[subjectHash]bool{} // subjects with several keys, of which one is rewrapped
	errs := make(chan error, rewrapAtOnce)
	underWay := 0
	collect := func(atMost int) error {
		for underWay > atMost {
			select {
			case err := <-errs:
				underWay--
				if err != nil {
					return eventlog.UnavailableFrom(dependency, err)
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	}
	err = k.scan(ctx, end, func(r *kgo.Record) error {
		name := string(r.Key)
		subject, id, ok := parseRecordKey(name)
		if !ok || r.Value == nil {
			return nil
		}
		k.mu.RLock()
		held, ok := k.ring.get(id)
		all, several := k.ring.len(), len(k.ring.of(subject.hash())) > 1
		k.mu.RUnlock()
		v, wrapped, err := decodeKey(r.Value)
		if err != nil || !ok || held.subject != subject.hash() || held.wrapped != wrapped {
			return nil // destroyed, or there is a newer wrapping
		}
		if out.Keys++; progress != nil && out.Keys%rewrapAtOnce == 0 {
			progress(out.Keys, all)
		}
		switch {
		case held.master == 0 && !moved[held.subject]:
			return nil
		case int(held.master) >= len(k.config.Masters):
			k.mu.RLock()
			defer k.mu.RUnlock()
			return k.missing(map[string]int{k.fingerprints[held.master]: 1})
		case several:
			moved[held.subject] = true
		}
		key, err := k.config.Masters[held.master].unwrap(name, &wrapped)
		if err != nil {
			return err
		}
		wrapped = newest.wrap(name, key)
		value, err := encodeKey(newest, &wrapped, v.CreatedAt)
		if err != nil {
			return err
		}
		underWay++
		k.client.Produce(ctx, &kgo.Record{Topic: eventlog.SubjectKeys, Partition: partition, Key: []byte(name), Value: value, Timestamp: time.Now()},
			func(_ *kgo.Record, err error) { errs <- err })
		out.Rewrapped++
		written = append(written, name)
		return collect(rewrapAtOnce - 1)
	})
	if err == nil {
		err = collect(0)
	}
	if err != nil {
		return out, err
	}
	return out, k.buryRewrapped(ctx, end, written)
}

// buryRewrapped appends the tombstones of the keys again that were destroyed after offset
// from, while they were rewrapped.
func (k *Keyring) buryRewrapped(ctx context.Context, from int64, written []string) error {
	mine := make(map[string]bool, len(written))
	for _, name := range written {
		mine[name] = true
	}
	end, err := k.end(ctx)
	if err != nil {
		return eventlog.UnavailableFrom(dependency, err)
	}
	destroyed := map[string]bool{}
	err = k.scanFrom(ctx, from, end, func(r *kgo.Record) error {
		if mine[string(r.Key)] && r.Value == nil {
			destroyed[string(r.Key)] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	for name := range destroyed {
		if _, err := k.append(ctx, &kgo.Record{Key: []byte(name)}); err != nil {
			return eventlog.UnavailableFrom(dependency, err)
		}
	}
	return k.readToEnd(ctx)
}

// scan calls fn for the records of the topic before the offset end, in their order.
func (k *Keyring) scan(ctx context.Context, end int64, fn func(*kgo.Record) error) error {
	return k.scanFrom(ctx, 0, end, fn)
}

// scanFrom is scan from an offset on. The record at end-1 exists, because it was the last
// one when the brokers were asked; it may have been compacted away since, so a later
// record ends the scan, too.
func (k *Keyring) scanFrom(ctx context.Context, from, end int64, fn func(*kgo.Record) error) error {
	if from >= end {
		return nil
	}
	at := fromTheStart()
	if from > 0 {
		at[eventlog.SubjectKeys][partition] = kgo.NewOffset().At(from)
	}
	client, err := k.config.Kafka.NewClient(kgo.ConsumePartitions(at), kgo.FetchMaxWait(100*time.Millisecond))
	if err != nil {
		return err
	}
	defer client.Close()
	for {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, fe := range fetches.Errors() {
			return eventlog.UnavailableFrom(dependency, fe.Err)
		}
		for _, r := range fetches.Records() {
			if r.Offset < end && !r.Attrs.IsControl() {
				if err := fn(r); err != nil {
					return err
				}
			}
			if r.Offset >= end-1 {
				return nil
			}
		}
	}
}
