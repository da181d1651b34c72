package subjectkeys

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/domain"
	"tomato/eventlog"
)

// Erase destroys all keys of a subject, and of a rider the last position, too. by says
// who asked for it, as ops:<sub> or cli:<user>. It returns when the keyring itself has
// taken it in; other instances follow within seconds. A repeat destroys what is there by
// then, and is recorded, too. It fails with eventlog.ErrUnavailable; a repeat is safe.
//
// The record of the erasure is appended first, and names the keys that are to be
// destroyed. So whatever happens afterwards, it is known who asked for what. From then on
// no instance uses these keys, whichever records of them come later. The tombstones make
// compaction remove them from the disk. When they are appended, the record is replaced by
// one that says so. If that is never reached, FinishErasures does the rest.
func (k *Keyring) Erase(ctx context.Context, subject Subject, by, reason string) (Erasure, error) {
	e, err := k.beginErasure(ctx, subject, by, reason)
	if err == nil {
		e, err = k.finishErasure(ctx, e)
	}
	return e, eventlog.UnavailableFrom(dependency, err)
}

// beginErasure appends the record which says that an erasure is begun.
func (k *Keyring) beginErasure(ctx context.Context, subject Subject, by, reason string) (Erasure, error) {
	id, err := uuid.NewV7()
	if err != nil {
		return Erasure{}, err
	}
	if err := k.readToEnd(ctx); err != nil {
		return Erasure{}, err
	}
	k.mu.RLock()
	keys := k.ring.of(subject.hash())
	k.mu.RUnlock()
	e := Erasure{ID: id.String(), Subject: subject, At: domain.Time(time.Now()), By: by, Reason: reason, Keys: len(keys), ids: keys}
	return e, k.appendErasure(ctx, &e)
}

// finishErasure does what an erasure that was begun has left undone. It does not matter
// if it was done before, or if another instance does it at the same time. Keys that the
// subject has got since the erasure was begun stay.
func (k *Keyring) finishErasure(ctx context.Context, e Erasure) (Erasure, error) {
	for _, key := range e.ids {
		if _, err := k.append(ctx, &kgo.Record{Key: []byte(recordKey(e.Subject, key))}); err != nil {
			return e, err
		}
	}
	if e.Subject.kind == kindRider {
		if err := k.erasePosition(ctx, e.Subject.id); err != nil {
			return e, err
		}
	}
	e.CompletedAt = domain.Time(time.Now())
	return e, k.appendErasure(ctx, &e)
}

// appendErasure appends the record of an erasure, and reads up to it.
func (k *Keyring) appendErasure(ctx context.Context, e *Erasure) error {
	name, value, err := e.encode()
	if err != nil {
		return err
	}
	offset, err := k.append(ctx, &kgo.Record{Key: []byte(name), Value: value})
	if err != nil {
		return err
	}
	return k.await(ctx, offset+1)
}

// FinishErasures finishes the erasures that were begun and not finished, because whoever
// did them has crashed or could not reach the brokers. It returns how many it has
// finished. It fails with eventlog.ErrUnavailable; a repeat does the others.
func (k *Keyring) FinishErasures(ctx context.Context) (finished int, err error) {
	k.mu.RLock()
	var begun []Erasure
	for _, e := range k.erasures {
		if e.CompletedAt.IsZero() {
			begun = append(begun, e)
		}
	}
	k.mu.RUnlock()
	for _, e := range begun {
		if _, err := k.finishErasure(ctx, e); err != nil {
			return finished, eventlog.UnavailableFrom(dependency, err)
		}
		k.log.Info("an erasure that was begun and not finished is finished", "erasure", e.ID, "begunAt", e.At)
		finished++
	}
	return finished, nil
}

// takeErasure takes the record of an erasure in. The keys that it names are destroyed. The
// caller must hold mu.
func (k *Keyring) takeErasure(e Erasure) {
	if old, ok := k.erasures[e.ID]; ok && !old.CompletedAt.IsZero() && e.CompletedAt.IsZero() {
		return
	}
	k.erasures[e.ID] = e
	hash := e.Subject.hash()
	k.erased[hash] = struct{}{}
	for _, id := range e.ids {
		k.destroyed[subjectKey{hash, id}] = struct{}{}
		k.forget(hash, id)
	}
}

// forget takes a destroyed key out of memory. It does nothing if the key is another
// subject's. The caller must hold mu.
func (k *Keyring) forget(subject subjectHash, id KeyID) {
	if held, ok := k.ring.get(id); ok && held.subject != subject {
		return
	}
	k.ring.remove(subject, id)
	k.ciphers.drop(id)
	k.gone.add(id)
}

// erasePosition appends the tombstone of a rider's last position to rider-locations. The
// riders read model takes the position out when it reads it.
func (k *Keyring) erasePosition(ctx context.Context, riderID string) error {
	starts, err := eventlog.StartOffsets(ctx, k.client, eventlog.RiderLocations)
	if err != nil {
		return err
	}
	_, err = appendTo(ctx, k.client, eventlog.RiderLocations, eventlog.PartitionFor(riderID, int32(len(starts))),
		&kgo.Record{Key: []byte(riderID), Headers: []kgo.RecordHeader{{Key: eventlog.HeaderType, Value: []byte(eventlog.PositionErased)}}})
	return err
}

// Erasures returns who was erased or is being erased, newest first: those before the one
// with the id before, or all if before is empty, and at most limit. ok is false if there
// is no erasure with the id before.
func (k *Keyring) Erasures(before string, limit int) (page []Erasure, more, ok bool) {
	k.mu.RLock()
	all := slices.Collect(maps.Values(k.erasures))
	k.mu.RUnlock()
	slices.SortFunc(all, func(a, b Erasure) int { return cmp.Or(b.At.Compare(a.At), cmp.Compare(b.ID, a.ID)) })
	if before != "" {
		i := slices.IndexFunc(all, func(e Erasure) bool { return e.ID == before })
		if i < 0 {
			return nil, false, false
		}
		all = all[i+1:]
	}
	return all[:min(limit, len(all))], len(all) > limit, true
}
