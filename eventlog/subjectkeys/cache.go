package subjectkeys

import "sync"

// A cipher has some 1.5 KiB and takes some microseconds to make; the mark of a destroyed
// key has some bytes. Each cache holds at most twice these numbers.
const (
	ciphersKept = 8 << 10
	goneKept    = 64 << 10
)

// A cipherCache has the ciphers that were used lately. It has two generations: when the
// young one is full, it becomes the old one, and what was in the old one is forgotten. The
// zero value is ready to use. Safe for concurrent use.
type cipherCache struct {
	mu         sync.Mutex // guards the fields below
	young, old map[KeyID]*Cipher
}

func (c *cipherCache) get(id KeyID) *Cipher {
	c.mu.Lock()
	defer c.mu.Unlock()
	if found := c.young[id]; found != nil {
		return found
	}
	found := c.old[id]
	if found != nil {
		c.add(found)
	}
	return found
}

func (c *cipherCache) put(x *Cipher) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(x)
}

func (c *cipherCache) add(x *Cipher) {
	if c.young == nil || len(c.young) >= ciphersKept {
		c.young, c.old = make(map[KeyID]*Cipher), c.young
	}
	c.young[x.id] = x
}

func (c *cipherCache) drop(id KeyID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.young, id)
	delete(c.old, id)
}

// subjectKey is a key of a subject. Another program may use the id of a key for another
// subject.
type subjectKey struct {
	subject subjectHash
	id      KeyID
}

// recent is a set of keys with the same two generations. It is not safe for concurrent
// use.
type recent[K comparable] struct{ young, old map[K]struct{} }

func (r *recent[K]) has(id K) bool {
	_, young := r.young[id]
	_, old := r.old[id]
	return young || old
}

func (r *recent[K]) add(id K) {
	if r.young == nil || len(r.young) >= goneKept {
		r.young, r.old = map[K]struct{}{}, r.young
	}
	r.young[id] = struct{}{}
}

func (r *recent[K]) drop(id K) {
	delete(r.young, id)
	delete(r.old, id)
}
