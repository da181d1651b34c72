package subjectkeys

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// makeKey makes sure that the subject has a key. Concurrent calls for one subject share
// the work. It fails with eventlog.ErrUnavailable.
//
// The topic is read to its end first, so a key that another instance has used is never
// passed over: its record was acknowledged before. Of two keys that are made at once, the
// first one in the log is used by everybody, because everybody reads up to their own
// record before they seal anything.
func (k *Keyring) makeKey(ctx context.Context, subject Subject) error {
	if len(k.config.Masters) == 0 {
		return errors.New("subject keys: a key cannot be made without a master key")
	}
	made := k.makes.DoChan(subject.String(), func() (any, error) {
		ctx, cancel := context.WithTimeout(context.Background(), makeLimit)
		defer cancel()
		return nil, eventlog.UnavailableFrom(dependency, k.makeOne(ctx, subject))
	})
	select {
	case m := <-made:
		return m.Err
	case <-ctx.Done():
		return eventlog.UnavailableFrom(dependency, ctx.Err())
	}
}

func (k *Keyring) makeOne(ctx context.Context, subject Subject) error {
	if err := k.readToEnd(ctx); err != nil {
		return err
	}
	hash := subject.hash()
	k.mu.RLock()
	have := k.ring.firstOf(hash)
	id := k.newID()
	k.mu.RUnlock()
	if have != 0 {
		return nil
	}
	key := make([]byte, keyBytes)
	_, _ = rand.Read(key) // never fails
	master, name := k.config.Masters[0], recordKey(subject, id)
	wrapped := master.wrap(name, key)
	value, err := encodeKey(master, &wrapped, time.Now())
	if err != nil {
		return err
	}
	offset, err := k.append(ctx, &kgo.Record{Key: []byte(name), Value: value})
	if err != nil {
		return err
	}
	k.metrics.made.Inc()
	if err := k.await(ctx, offset+1); err != nil {
		return err
	}
	k.mu.RLock()
	first := k.ring.firstOf(hash)
	_, mine := k.ring.get(id)
	k.mu.RUnlock()
	if mine && first != id {
		// Another instance was first, so nothing is ever sealed with this key. If it
		// cannot be taken back, it is only one key more.
		if _, err := k.append(ctx, &kgo.Record{Key: []byte(name)}); err != nil {
			k.log.Warn("an unused key of a subject stays on the topic", "key", id.String(), "err", err)
		}
	}
	return nil
}

// newID returns an id that no key has. The caller must hold mu.
func (k *Keyring) newID() KeyID {
	for {
		var b [keyIDBytes]byte
		_, _ = rand.Read(b[:]) // never fails
		id := KeyID(binary.BigEndian.Uint64(b[:]))
		if _, taken := k.ring.get(id); id != 0 && !taken {
			return id
		}
	}
}

// append appends a record to the topic and returns its offset. After an error the record
// may still be appended.
func (k *Keyring) append(ctx context.Context, r *kgo.Record) (offset int64, err error) {
	return appendTo(ctx, k.client, eventlog.SubjectKeys, partition, r)
}

// appendTo does not use ProduceSync, which may return long after ctx has ended.
func appendTo(ctx context.Context, client *kgo.Client, topic string, partition int32, r *kgo.Record) (offset int64, err error) {
	r.Topic, r.Partition, r.Timestamp = topic, partition, time.Now()
	type result struct {
		offset int64
		err    error
	}
	done := make(chan result, 1)
	client.Produce(ctx, r, func(stored *kgo.Record, err error) { done <- result{stored.Offset, err} })
	select {
	case stored := <-done:
		return stored.offset, stored.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
