package feed

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash"
	"sync"

	"github.com/google/uuid"

	"tomato/domain"
	"tomato/domain/rooms"
)

const (
	cursorVersion  = 2 // 1 had the positions of all logs in it
	cursorMACBytes = 5 // of the MAC of the text
	baseMACBytes   = 3 // of the MAC that covers the base's key, too
	cursorHead     = 1 + cursorMACBytes + baseMACBytes
	maxCursorChars = 32 << 10
	maxLogs        = len(cursorTopics) * maxPartitions
	maxPartitions  = 1 << 14
	maxCursorRooms = 255
)

// cursors writes and reads cursors: places as text for clients, opaque to them, of the
// characters A-Z a-z 0-9 _ and -. Safe for concurrent use.
//
// A cursor is the base64url of the version, two truncated HMAC-SHA256 of all that follows,
// and that: the number of the rooms which the connection has joined beside those of its
// token, and these rooms; and as varints the id of the base, the number of logs in which
// the client is elsewhere, these logs (each as the distance from the one before) with their
// distance from the base, and the record that was sent in part. If there are rooms, the
// MACs cover the actor too, so that nobody can resume in the rooms of another.
//
// The first MAC says that the text was written with this key, so that nothing is read for
// other texts. The second one covers the key of the base's record, too, which is not in the
// text. After a restore another base may have the same id. Three bytes are enough for this
// accident, and a forger needs both MACs.
//
// The first key writes cursors, and each of them reads them, so that cursors survive a
// change of the key.
type cursors struct {
	keys []*cursorKey
}

// cursorKey makes MACs with one key.
type cursorKey struct {
	macs sync.Pool // of hash.Hash
}

func newCursors(keys ...[]byte) *cursors {
	c := &cursors{}
	for _, key := range keys {
		c.keys = append(c.keys, &cursorKey{macs: sync.Pool{New: func() any { return hmac.New(sha256.New, key) }}})
	}
	return c
}

// mac appends so many bytes of the MAC of a cursor's body to b. baseKey is "" for the first
// MAC.
func (k *cursorKey) mac(b []byte, n int, actor domain.Actor, baseKey string, body []byte) []byte {
	h := k.macs.Get().(hash.Hash)
	defer k.macs.Put(h)
	h.Reset()
	h.Write([]byte("cursor\x00" + baseKey + "\x00"))
	if body[0] > 0 {
		h.Write([]byte(string(actor.Role) + "\x00" + actor.Sub + "\x00" + actor.RestaurantID + "\x00"))
	}
	h.Write(body)
	var sum [sha256.Size]byte
	return append(b, h.Sum(sum[:0])[:n]...)
}

// roomsPart returns the rooms as they stand in a cursor. nil: none.
func roomsPart(joined []string) []byte {
	if len(joined) == 0 {
		return nil
	}
	b := []byte{byte(len(joined))}
	for _, r := range joined {
		if id, ok := rooms.OrderID(r); ok {
			if u, err := uuid.Parse(id); err == nil && u.String() == id {
				b = append(append(b, 1), u[:]...)
				continue
			}
		}
		b = append(append(b, byte(len(r))), r...) // 3 to 80
	}
	return b
}

// append appends the cursor of a client that is at p, in the rooms of the rooms part.
func (c *cursors) append(text []byte, p *place, actor domain.Actor, roomsPart []byte) []byte {
	var array [512]byte
	b := append(array[:0], cursorVersion, 0, 0, 0, 0, 0, 0, 0, 0)
	if roomsPart == nil {
		b = append(b, 0)
	}
	b = append(b, roomsPart...)
	b = binary.AppendUvarint(b, uint64(p.base.id))
	b = binary.AppendUvarint(b, uint64(len(p.changes)))
	last := -1
	for _, x := range p.changes {
		b = binary.AppendUvarint(b, uint64(x.log-last-1))
		b = binary.AppendVarint(b, x.offset-p.base.done[x.log])
		last = x.log
	}
	if p.part.log != noLog {
		b = binary.AppendUvarint(b, uint64(p.part.log))
		b = binary.AppendVarint(b, p.part.offset-p.base.done[p.part.log])
		b = binary.AppendUvarint(b, uint64(p.sent))
	}
	head := c.keys[0].mac(b[:1], cursorMACBytes, actor, "", b[cursorHead:])
	c.keys[0].mac(head, baseMACBytes, actor, p.base.key, b[cursorHead:])
	return base64.RawURLEncoding.AppendEncode(text, b)
}

// A cursor is what a client came back with.
type cursor struct {
	base    int64    // its id
	changes []change // relative to the base
	part    change   // the same
	sent    int
	rooms   []string // joined beside those of the token
	body    []byte   // what the MACs cover
	baseMAC []byte
	key     *cursorKey // that it was written with
	fault   string     // "" or why it is of no use: a reason of feed:reset
}

// parse reads a cursor. The fault is resetUnknown unless the text was written with one of
// the keys, which are of these logs, and for this actor. Nothing is read before the MAC is known
// to be right.
func (c *cursors) parse(s string, actor domain.Actor) *cursor {
	unknown := &cursor{fault: resetUnknown}
	if len(s) > maxCursorChars {
		return unknown
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) <= cursorHead || b[0] != cursorVersion {
		return unknown
	}
	body, head := b[cursorHead:], b[1:cursorHead]
	var key *cursorKey
	for _, k := range c.keys {
		if hmac.Equal(head[:cursorMACBytes], k.mac(nil, cursorMACBytes, actor, "", body)) {
			key = k
			break
		}
	}
	if key == nil {
		return unknown
	}
	v := varints{b: body}
	parsed := &cursor{part: change{log: noLog}, body: body, baseMAC: head[cursorMACBytes:], key: key}
	for range v.byte() {
		parsed.rooms = append(parsed.rooms, v.room())
	}
	parsed.base = v.next()
	log := -1
	for range v.upTo(int64(maxLogs)) {
		log += 1 + int(v.upTo(int64(maxLogs)))
		if parsed.changes = append(parsed.changes, change{log, v.signed()}); v.bad {
			return unknown
		}
	}
	if len(v.b) > 0 && !v.bad {
		parsed.part = change{int(v.upTo(int64(maxLogs))), v.signed()}
		parsed.sent = int(v.upTo(1 << 30))
	}
	if v.bad || len(v.b) > 0 {
		return unknown
	}
	return parsed
}

// place returns the place that the cursor of this actor means, relative to its base. ok is
// false if b is not the base that it was made with.
func (*cursors) place(parsed *cursor, actor domain.Actor, b *base) (p place, ok bool) {
	if !hmac.Equal(parsed.baseMAC, parsed.key.mac(nil, baseMACBytes, actor, b.key, parsed.body)) {
		return newPlace(b), false
	}
	return parsed.at(b)
}

// at returns the place relative to the base. ok is false if it is none.
func (c *cursor) at(b *base) (p place, ok bool) {
	p = newPlace(b)
	absolute := func(x change) (change, bool) {
		if x.log >= len(b.done) || b.done[x.log]+x.offset < -1 {
			return x, false
		}
		return change{x.log, b.done[x.log] + x.offset}, true
	}
	for _, x := range c.changes {
		if x, ok = absolute(x); !ok {
			return p, false
		}
		p.changes = append(p.changes, x)
	}
	if c.part.log != noLog {
		if p.part, ok = absolute(c.part); !ok {
			return p, false
		}
		p.sent = c.sent
	}
	return p, true
}

// varints reads what append has written.
type varints struct {
	b   []byte
	bad bool
}

func (v *varints) byte() (n int) {
	if len(v.b) == 0 {
		v.bad = true
		return 0
	}
	n, v.b = int(v.b[0]), v.b[1:]
	return n
}

func (v *varints) next() int64 {
	n, size := binary.Uvarint(v.b)
	if size <= 0 || n > 1<<62 {
		v.bad, v.b = true, nil
		return 0
	}
	v.b = v.b[size:]
	return int64(n)
}

func (v *varints) signed() int64 {
	n, size := binary.Varint(v.b)
	if size <= 0 || n > 1<<62 || n < -1<<62 {
		v.bad, v.b = true, nil
		return 0
	}
	v.b = v.b[size:]
	return n
}

// upTo reads a number below limit.
func (v *varints) upTo(limit int64) int64 {
	n := v.next()
	if n >= limit {
		v.bad, v.b = true, nil
		return 0
	}
	return n
}

func (v *varints) room() string {
	n := v.byte()
	size := n
	if n == 1 {
		size = 16
	}
	if size > len(v.b) {
		v.bad, v.b = true, nil
		return ""
	}
	text := v.b[:size]
	v.b = v.b[size:]
	if n == 1 {
		return rooms.Order(uuid.UUID(text).String())
	}
	if !rooms.Valid(string(text)) {
		v.bad = true
	}
	return string(text)
}
