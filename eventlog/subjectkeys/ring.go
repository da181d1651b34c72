package subjectkeys

import "iter"

// A ring has the keys of all subjects, as the topic has them. It is small: keys stay
// wrapped, and subjects are hashes. It is not safe for concurrent use.
type ring struct {
	places map[KeyID]uint32       // where each key is
	first  map[subjectHash]uint32 // where the first key of each subject in the log is
	blocks [][]heldKey            // each of blockKeys; unlike in a map or a slice, growing copies nothing
	free   []uint32               // places of keys that were removed
}

const blockKeys = 4 << 10

// heldKey is one key.
type heldKey struct {
	wrapped wrappedKey
	subject subjectHash
	id      KeyID
	next    uint32 // the place of the subject's next key in the log, plus 1; 0: none
	master  uint8  // index of its master key
}

func newRing() ring { return ring{places: map[KeyID]uint32{}, first: map[subjectHash]uint32{}} }

func (r *ring) at(place uint32) *heldKey { return &r.blocks[place/blockKeys][place%blockKeys] }

func (r *ring) len() int { return len(r.places) }

// get returns the key with this id.
func (r *ring) get(id KeyID) (k heldKey, ok bool) {
	place, ok := r.places[id]
	if ok {
		k = *r.at(place)
	}
	return k, ok
}

// firstOf returns the id of the first key of a subject in the log; 0: it has none.
func (r *ring) firstOf(subject subjectHash) KeyID {
	if place, ok := r.first[subject]; ok {
		return r.at(place).id
	}
	return 0
}

// put takes a key that was read from the log, or its new wrapping. It reports false if
// another subject has a key with this id.
func (r *ring) put(k heldKey) bool {
	if place, ok := r.places[k.id]; ok {
		old := r.at(place)
		if old.subject != k.subject {
			return false
		}
		k.next = old.next
		*old = k
		return true
	}
	place := r.newPlace()
	k.next = 0
	*r.at(place) = k
	r.places[k.id] = place
	at, ok := r.first[k.subject]
	if !ok {
		r.first[k.subject] = place
		return true
	}
	last := r.at(at)
	for last.next != 0 {
		last = r.at(last.next - 1)
	}
	last.next = place + 1
	return true
}

func (r *ring) newPlace() uint32 {
	if n := len(r.free); n > 0 {
		place := r.free[n-1]
		r.free = r.free[:n-1]
		return place
	}
	n := len(r.blocks)
	if n == 0 || len(r.blocks[n-1]) == blockKeys {
		r.blocks = append(r.blocks, make([]heldKey, 0, blockKeys))
		n++
	}
	block := &r.blocks[n-1]
	*block = append(*block, heldKey{})
	return uint32((n-1)*blockKeys + len(*block) - 1)
}

// remove takes a destroyed key out.
func (r *ring) remove(subject subjectHash, id KeyID) {
	place, ok := r.places[id]
	if !ok || r.at(place).subject != subject {
		return
	}
	next := r.at(place).next
	switch first := r.first[subject]; {
	case first == place && next == 0:
		delete(r.first, subject)
	case first == place:
		r.first[subject] = next - 1
	default:
		before := r.at(first)
		for before.next != place+1 {
			before = r.at(before.next - 1)
		}
		before.next = next
	}
	delete(r.places, id)
	*r.at(place) = heldKey{}
	r.free = append(r.free, place)
}

// of returns the ids of a subject's keys, in the order of the log.
func (r *ring) of(subject subjectHash) (ids []KeyID) {
	place, ok := r.first[subject]
	for ok {
		k := r.at(place)
		ids = append(ids, k.id)
		place, ok = k.next-1, k.next != 0
	}
	return ids
}

// all returns all keys, in no particular order.
func (r *ring) all() iter.Seq[*heldKey] {
	return func(yield func(*heldKey) bool) {
		for _, place := range r.places {
			if !yield(r.at(place)) {
				return
			}
		}
	}
}
