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
// The record of the erasure is appended last, so it says that everything was done.
func (k *Keyring) Erase(ctx context.Context, subject Subject, by, reason string) (Erasure, error) {
	e, err := k.erase(ctx, subject, by, reason)
	return e, eventlog.UnavailableFrom(dependency, err)
}

func (k *Keyring) erase(ctx context.Context, subject Subject, by, reason string) (Erasure, error) {
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
	for _, key := range keys {
		if _, err := k.append(ctx, &kgo.Record{Key: []byte(recordKey(subject, key))}); err != nil {
			return Erasure{}, err
		}
	}
	if subject.kind == kindRider {
		if err := k.erasePosition(ctx, subject.id); err != nil {
			return Erasure{}, err
		}
	}
	e := Erasure{ID: id.String(), Subject: subject, At: domain.Time(time.Now()), By: by, Reason: reason, Keys: len(keys)}
	name, value, err := e.encode()
	if err != nil {
		return Erasure{}, err
	}
	offset, err := k.append(ctx, &kgo.Record{Key: []byte(name), Value: value})
	if err != nil {
		return Erasure{}, err
	}
	return e, k.await(ctx, offset+1)
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

// Erasures returns who was erased, newest first: those before the one with the id
// before, or all if before is empty, and at most limit. ok is false if there is no
// erasure with the id before.
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
