package subjectkeys

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
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
		k.takeErasure(e)
		return nil
	}
	subject, id, ok := parseRecordKey(key)
	if !ok {
		return fmt.Errorf("its key %q is not known", eventlog.LogText(key))
	}
	this := subjectKey{subject.hash(), id}
	if r.Value == nil {
		if held, ok := k.ring.get(id); ok && held.subject != this.subject {
			return errors.New("it is a tombstone for a key that another subject has")
		}
		k.forget(this.subject, id)
		k.buried.add(this)
		if r.Timestamp.After(k.lastGone) {
			k.lastGone = r.Timestamp
		}
		return nil
	}
	v, wrapped, err := decodeKey(r.Value)
	if err != nil {
		return err
	}
	if _, destroyed := k.destroyed[this]; destroyed || k.buried.has(this) {
		// Ids are never used again, so this is a new wrapping of a key that was destroyed
		// meanwhile.
		k.unearthed = append(k.unearthed, key)
		return nil
	}
	held := heldKey{id: id, wrapped: wrapped, subject: this.subject, master: k.masterIndex(v.Master)}
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
	k.log.Error("a key of a customer or rider is wrapped under a master key that this instance does not have: calls about such people are 503, and feeds show them as erased. "+
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

// Limits of the start, whose time grows with the number of keys.
const (
	startStall    = time.Minute      // without any record
	startLogEvery = 10 * time.Second // how far it is
)

// awaitStart is await for the start: it goes on for as long as records come, and fails
// when none has come for startStall.
func (k *Keyring) awaitStart(ctx context.Context, offset int64) error {
	stalled, tick := time.NewTimer(startStall), time.NewTicker(startLogEvery)
	defer stalled.Stop()
	defer tick.Stop()
	last := int64(0)
	for {
		k.mu.RLock()
		passed, moved := k.passed, k.moved
		k.mu.RUnlock()
		if passed >= offset {
			return nil
		}
		if passed != last {
			last = passed
			stalled.Reset(startStall)
		}
		select {
		case <-moved:
		case <-tick.C:
			k.log.Info("reading the keys of customers and riders", "offset", passed, "of", offset)
		case <-stalled.C:
			return fmt.Errorf("%s was read up to offset %d of %d, and nothing has come for %v: are the brokers reachable?", eventlog.SubjectKeys, passed, offset, startStall)
		case <-ctx.Done():
			return fmt.Errorf("%s was read up to offset %d of %d: %w", eventlog.SubjectKeys, passed, offset, ctx.Err())
		}
	}
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
	markAfter   = time.Hour + 5*time.Minute // after a tombstone
	upkeepEvery = 10 * time.Minute
)

// upkeep does now and then what nobody asks for: it finishes erasures that were begun,
// and it appends a mark when a tombstone was appended more than an hour ago and nothing
// after that hour. Without the mark, a key that was destroyed last of all would stay on
// disk until somebody else's key is made.
func (k *Keyring) upkeep(ctx context.Context) {
	tick := time.NewTicker(upkeepEvery)
	defer tick.Stop()
	for {
		if _, err := k.FinishErasures(ctx); err != nil && ctx.Err() == nil {
			k.log.Warn("an erasure that was begun cannot be finished now; it is tried again", "err", err)
		}
		if k.needsMark(time.Now()) {
			if err := k.mark(ctx); err != nil && ctx.Err() == nil {
				k.log.Warn("a destroyed key stays on the brokers' disks until the next record of subject-keys", "err", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
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
