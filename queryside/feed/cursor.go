package feed

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash"
	"slices"

	"github.com/google/uuid"

	"tomato/domain"
	"tomato/domain/rooms"
	"tomato/eventlog"
)

// cursorTopics are the logs that feed messages come from, in the order in which
// a cursor numbers them. Another order or another topic needs another
// cursorVersion: old cursors are then answered with feed:reset.
var cursorTopics = [...]string{eventlog.Orders, eventlog.Payments, eventlog.RiderLocations, eventlog.Feed}

const (
	cursorVersion  = 1
	cursorMACBytes = 8 // at least; up to two more, so that the next part begins on a base64 boundary
	maxCursorChars = 8 << 10
	maxPartitions  = 1024
	noLog          = -1
)

// positions say, for every log, what a client has been sent. One record can mean
// several messages, so at most one record beyond them may have been sent in part.
type positions struct {
	partitions int
	// done has the offset of the last valid record of each log of which all
	// messages were sent; -1: none. The logs are in the order of cursorTopics, and
	// within a topic in that of its partitions.
	done     []int64
	partial  int   // the log of the record that was sent in part, or noLog
	offset   int64 // of that record
	messages int   // how many of its messages were sent
}

func newPositions(partitions int) positions {
	p := positions{partitions: partitions, done: make([]int64, len(cursorTopics)*partitions), partial: noLog}
	for i := range p.done {
		p.done[i] = -1
	}
	return p
}

func (p *positions) clone() positions {
	c := *p
	c.done = slices.Clone(p.done)
	return c
}

// log is the number of a log, or noLog.
func (p *positions) log(tp eventlog.TopicPartition) int {
	for i, t := range cursorTopics {
		if t == tp.Topic && tp.Partition >= 0 && int(tp.Partition) < p.partitions {
			return i*p.partitions + int(tp.Partition)
		}
	}
	return noLog
}

// has reports whether the i-th message of a record has been sent.
func (p *positions) has(log int, offset int64, i int) bool {
	return offset <= p.done[log] || log == p.partial && offset == p.offset && i < p.messages
}

// reached reports whether everything in other has been sent here too.
func (p *positions) reached(other *positions) bool {
	for i, o := range other.done {
		if p.done[i] < o {
			return false
		}
	}
	return other.partial == noLog || p.done[other.partial] >= other.offset
}

// token returns the positions as a consistency token. A record that was sent in
// part is included.
func (p *positions) token() eventlog.Token {
	t := eventlog.Token{}
	add := func(log int, offset int64) {
		if offset >= 0 {
			t.Add(cursorTopics[log/p.partitions], int32(log%p.partitions), offset)
		}
	}
	for l, o := range p.done {
		add(l, o)
	}
	if p.partial != noLog {
		add(p.partial, p.offset)
	}
	return t
}

// cursors writes and reads cursors: positions as text for clients, opaque to
// them, of the characters A-Z a-z 0-9 _ and -.
//
// A cursor has two parts, each with its own truncated HMAC-SHA256. The first part
// is the positions. It is the same for all connections of an instance, so it is
// written once per message, as varints: the version, the number of partitions,
// for each topic the least offset and every partition's distance from it, and the
// record that was sent in part. The second part is the rooms that this connection
// joined beside those of its token; most connections have none, and then the part
// is absent. Its MAC covers the actor too, so that nobody can resume in the rooms
// of another.
//
// Only one goroutine may write at a time; parse is safe for concurrent use.
type cursors struct {
	key  []byte
	mac  hash.Hash
	body []byte // scratch
}

func newCursors(key []byte) *cursors {
	return &cursors{key: key, mac: hmac.New(sha256.New, key)}
}

func sum(mac hash.Hash, kind string, body []byte) []byte {
	mac.Reset()
	mac.Write([]byte(kind))
	mac.Write(body)
	return mac.Sum(nil)
}

// macLen makes body and MAC together a multiple of three bytes.
func macLen(body int) int { return cursorMACBytes + (3-(body+cursorMACBytes)%3)%3 }

// positions writes the first part.
func (c *cursors) positions(p *positions) []byte {
	b := append(c.body[:0], cursorVersion)
	b = binary.AppendUvarint(b, uint64(p.partitions))
	for t := range cursorTopics {
		part := p.done[t*p.partitions : (t+1)*p.partitions]
		least := slices.Min(part)
		b = binary.AppendUvarint(b, uint64(least+1))
		for _, o := range part {
			b = binary.AppendUvarint(b, uint64(o-least))
		}
	}
	b = binary.AppendUvarint(b, uint64(p.partial+1))
	if p.partial != noLog {
		b = binary.AppendUvarint(b, uint64(p.offset-p.done[p.partial]))
		b = binary.AppendUvarint(b, uint64(p.messages))
	}
	b = append(b, sum(c.mac, "place", b)[:macLen(len(b))]...)
	c.body = b
	return base64.RawURLEncoding.AppendEncode(make([]byte, 0, base64.RawURLEncoding.EncodedLen(len(b))), b)
}

// rooms writes the second part. It is empty where there are no rooms.
func (c *cursors) rooms(actor domain.Actor, joined []string) []byte {
	if len(joined) == 0 {
		return nil
	}
	var b []byte
	for _, r := range joined {
		if id, ok := rooms.OrderID(r); ok {
			if u, err := uuid.Parse(id); err == nil && u.String() == id {
				b = append(append(b, 1), u[:]...)
				continue
			}
		}
		b = append(append(b, byte(len(r))), r...) // 3 to 80
	}
	b = append(b, sum(c.mac, actorKind(actor), b)[:cursorMACBytes]...)
	return base64.RawURLEncoding.AppendEncode(nil, b)
}

func actorKind(a domain.Actor) string {
	return "rooms\x00" + string(a.Role) + "\x00" + a.Sub + "\x00" + a.RestaurantID + "\x00"
}

// A cursor is what a client came back with.
type cursor struct {
	positions
	rooms []string // joined beside those of the token
	fault string   // "" or why it is of no use: a reason of feed:reset
}

// parse reads both parts. The fault is resetUnknown unless the text was written
// with this key, which is of these logs, and for this actor.
func (c *cursors) parse(s string, actor domain.Actor) *cursor {
	unknown := &cursor{fault: resetUnknown}
	if len(s) > maxCursorChars {
		return unknown
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) == 0 || b[0] != cursorVersion {
		return unknown
	}
	// The MAC stands behind the positions, so their length is found first. Nothing
	// is kept of them before the MAC is known to be right.
	mac := hmac.New(sha256.New, c.key)
	body, ok := positionsLen(b)
	if !ok || body+macLen(body) > len(b) {
		return unknown
	}
	end := body + macLen(body)
	if !hmac.Equal(b[body:end], sum(mac, "place", b[:body])[:end-body]) {
		return unknown
	}
	parsed := &cursor{}
	if parsed.positions, ok = readPositions(b[:body]); !ok {
		return unknown
	}
	rest := b[end:]
	if len(rest) == 0 {
		return parsed
	}
	if len(rest) < cursorMACBytes {
		return unknown
	}
	list, tail := rest[:len(rest)-cursorMACBytes], rest[len(rest)-cursorMACBytes:]
	if !hmac.Equal(tail, sum(mac, actorKind(actor), list)[:cursorMACBytes]) {
		return unknown
	}
	for r := bytes.NewBuffer(list); r.Len() > 0; {
		n, _ := r.ReadByte()
		if n == 1 {
			u, err := uuid.FromBytes(r.Next(16))
			if err != nil {
				return unknown
			}
			parsed.rooms = append(parsed.rooms, rooms.Order(u.String()))
			continue
		}
		room := string(r.Next(int(n)))
		if !rooms.Valid(room) {
			return unknown
		}
		parsed.rooms = append(parsed.rooms, room)
	}
	return parsed
}

// varints reads the numbers of the first part, from behind its version.
type varints struct {
	b   []byte
	at  int
	bad bool
}

func (v *varints) next() int64 {
	n, size := binary.Uvarint(v.b[v.at:])
	if size <= 0 || n > 1<<62 {
		v.bad = true
		return 0
	}
	v.at += size
	return int64(n)
}

// positionsLen returns how many bytes the positions at the beginning of b take.
func positionsLen(b []byte) (int, bool) {
	v := varints{b: b, at: 1}
	partitions := v.next()
	if partitions < 1 || partitions > maxPartitions {
		return 0, false
	}
	for range len(cursorTopics) * (1 + int(partitions)) {
		if v.next(); v.bad {
			return 0, false
		}
	}
	if v.next() > 0 { // a record that is done in part
		v.next()
		v.next()
	}
	return v.at, !v.bad
}

// readPositions reads what positionsLen has measured.
func readPositions(b []byte) (p positions, ok bool) {
	v := varints{b: b, at: 1}
	p = newPositions(int(v.next()))
	for t := range cursorTopics {
		least := v.next() - 1
		for i := range p.partitions {
			p.done[t*p.partitions+i] = least + v.next()
		}
	}
	if l := v.next() - 1; l != noLog {
		if l >= int64(len(p.done)) {
			return p, false
		}
		p.partial = int(l)
		p.offset = p.done[l] + v.next()
		p.messages = int(v.next())
	}
	return p, !v.bad
}
