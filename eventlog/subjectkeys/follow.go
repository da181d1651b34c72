package subjectkeys

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// partition is the only one that the topic has.
const partition = 0

func fromTheStart() map[string]map[int32]kgo.Offset {
	return map[string]map[int32]kgo.Offset{eventlog.SubjectKeys: {partition: kgo.NewOffset().AtStart()}}
}

// follow takes in what is appended to the topic, until ctx ends.
func (k *Keyring) follow(ctx context.Context) {
	defer close(k.done)
	if k.config.Marks {
		var marking sync.WaitGroup
		defer marking.Wait()
		marking.Go(func() { k.keepMoving(ctx) })
	}
	for {
		fetches := k.client.PollFetches(ctx)
		if ctx.Err() != nil {
			return
		}
		for _, fe := range fetches.Errors() {
			k.log.Warn("the topic of the subjects' keys cannot be read now", "topic", fe.Topic, "err", fe.Err)
			var lost *kgo.ErrDataLoss
			if errors.Is(fe.Err, kerr.OffsetOutOfRange) || errors.As(fe.Err, &lost) {
				k.readAgain()
			}
		}
		if records := fetches.Records(); len(records) > 0 {
			k.take(records)
			k.buryAgain(ctx)
		}
		if len(fetches.Errors()) > 0 {
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		}
	}
}

// readAgain begins to read the topic from its start, because it is shorter than it was.
// Nothing is forgotten meanwhile.
func (k *Keyring) readAgain() {
	k.mu.Lock()
	k.passed = 0
	k.mu.Unlock()
	k.client.RemoveConsumePartitions(map[string][]int32{eventlog.SubjectKeys: {partition}})
	k.client.AddConsumePartitions(fromTheStart())
}

// take takes records in.
func (k *Keyring) take(records []*kgo.Record) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var first error // why records are skipped
	skipped := 0
	for _, r := range records {
		k.passed = max(k.passed, r.Offset+1)
		if r.Attrs.IsControl() {
			continue
		}
		if r.Timestamp.After(k.lastRecord) {
			k.lastRecord = r.Timestamp
		}
		if err := k.takeOne(r); err != nil {
			first = cmp.Or(first, fmt.Errorf("offset %d: %w", r.Offset, err))
			skipped++
		}
	}
	if skipped > 0 {
		k.log.Warn("records on the topic of the subjects' keys are skipped", "count", skipped, "err", first)
	}
	close(k.moved)
	k.moved = make(chan struct{})
}

// buryAgain appends the tombstones again of keys that were wrapped anew after they had
// been destroyed.
func (k *Keyring) buryAgain(ctx context.Context) {
	k.mu.Lock()
	names := k.unearthed
	k.unearthed = nil
	k.mu.Unlock()
	if !k.config.Marks {
		return
	}
	for _, name := range names {
		if _, err := k.append(ctx, &kgo.Record{Key: []byte(name)}); err != nil && ctx.Err() == nil {
			k.log.Error("a destroyed key is on the topic again; erase its subject again", "record", name, "err", err)
		}
	}
}

// takeOne takes one record in. The caller must hold mu. The error says why the record is
// skipped.
func (k *Keyring) takeOne(r *kgo.Record) error {
	key := string(r.Key)
	if key == markKey {
		return nil
	}
	if strings.HasPrefix(key, erasedPrefix) {
		if r.Value == nil {
			return nil
		}
		e, err := decodeErasure(key, r.Value)
		if err != nil {
			return err
		}
		k.erasures[e.ID] = e
		k.erased[e.Subject.hash()] = struct{}{}
		return nil
	}
	subject, id, ok := parseRecordKey(key)
	if !ok {
		return fmt.Errorf("its key %q is not known", eventlog.LogText(key))
	}
	if r.Value == nil {
		k.ring.remove(subject.hash(), id)
		k.ciphers.drop(id)
		k.gone.add(id)
		k.buried.add(id)
		if r.Timestamp.After(k.lastGone) {
			k.lastGone = r.Timestamp
		}
		return nil
	}
	v, wrapped, err := decodeKey(r.Value)
	if err != nil {
		return err
	}
	if k.buried.has(id) {
		// Ids are never used again, so this is a new wrapping of a key that was destroyed
		// meanwhile.
		k.unearthed = append(k.unearthed, key)
		return nil
	}
	held := heldKey{id: id, wrapped: wrapped, subject: subject.hash(), master: k.masterIndex(v.Master)}
	if int(held.master) < len(k.config.Masters) {
		if _, err := k.config.Masters[held.master].unwrap(key, &wrapped); err != nil {
			return err
		}
	} else {
		k.lacks(v.Master)
	}
	if !k.ring.put(held) {
		return errors.New("another subject has a key with this id")
	}
	k.gone.drop(id)
	return nil
}

// lacks logs now and then that a key came whose master key this instance does not have.
// While Start reads the topic, it says nothing: a later record may have another wrapping,
// and checkMasters looks at the last ones. The caller must hold mu.
func (k *Keyring) lacks(fingerprint string) {
	if !k.started || time.Since(k.lackLogged) < unreadableLogEvery {
		return
	}
	k.lackLogged = time.Now()
	k.log.Error("a key of a customer or rider is wrapped under a master key that this instance does not have: calls about such people are 503, and feeds wait. "+
		"Restart it with that master key in TOMATO_MASTER_KEY, behind the newest one", "fingerprint", eventlog.LogText(fingerprint))
}

// masterIndex returns the index of a master key in fingerprints. The caller must hold mu.
func (k *Keyring) masterIndex(fingerprint string) uint8 {
	if i := slices.Index(k.fingerprints, fingerprint); i >= 0 {
		return uint8(i)
	}
	const most = 255
	if len(k.fingerprints) < most {
		k.fingerprints = append(k.fingerprints, fingerprint)
	}
	return uint8(len(k.fingerprints) - 1)
}

// readToEnd returns when the keyring has taken in everything that was on the topic when
// it was called. Callers that come while the brokers are being asked share the next
// answer. It fails with eventlog.ErrUnavailable.
func (k *Keyring) readToEnd(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, readLimit)
	defer cancel()
	end, err := k.end(ctx)
	if err == nil {
		err = k.await(ctx, end)
	}
	return eventlog.UnavailableFrom(dependency, err)
}

// await returns when the keyring has taken in everything before the offset, or when ctx
// ends. The last record of a compacted topic stays, so there is always one at offset-1.
func (k *Keyring) await(ctx context.Context, offset int64) error {
	for {
		k.mu.RLock()
		passed, moved := k.passed, k.moved
		k.mu.RUnlock()
		if passed >= offset {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("%s was read up to offset %d of %d: %w", eventlog.SubjectKeys, passed, offset, ctx.Err())
		}
	}
}

// end returns an end offset that the topic had after the call began. Callers share
// requests.
func (k *Keyring) end(ctx context.Context) (int64, error) {
	token, err := k.ends.Token(ctx, eventlog.SubjectKeys)
	if err != nil {
		return 0, err
	}
	last, ok := token[eventlog.TopicPartition{Topic: eventlog.SubjectKeys, Partition: partition}]
	if !ok {
		return 0, nil // the topic has no record
	}
	return last + 1, nil
}

// When a mark is appended. A segment of the topic is closed, so that compaction may
// remove what is in it, when a record comes more than an hour after its first one
// (eventlog/topics.go).
const (
	markAfter = time.Hour + 5*time.Minute // after a tombstone
	markCheck = 10 * time.Minute
)

// keepMoving appends a mark when a tombstone was appended more than an hour ago and
// nothing after that hour. Without it, a key that was destroyed last of all would stay on
// disk until somebody else's key is made.
func (k *Keyring) keepMoving(ctx context.Context) {
	tick := time.NewTicker(markCheck)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if !k.needsMark(time.Now()) {
			continue
		}
		if err := k.mark(ctx); err != nil && ctx.Err() == nil {
			k.log.Warn("a destroyed key stays on the brokers' disks until the next record of subject-keys", "err", err)
		}
	}
}

func (k *Keyring) needsMark(now time.Time) bool {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return !k.lastGone.IsZero() && now.Sub(k.lastGone) > markAfter && k.lastRecord.Sub(k.lastGone) < markAfter
}

// mark appends a record that means nothing.
func (k *Keyring) mark(ctx context.Context) error {
	_, err := k.append(ctx, &kgo.Record{Key: []byte(markKey), Value: []byte(`{"v":1}`)})
	return err
}
