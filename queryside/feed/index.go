package feed

import (
	"cmp"
	"encoding/binary"
	"hash/maphash"
	"slices"
	"sort"
	"time"

	"tomato/domain/rooms"
	"tomato/eventlog"
)

// record names one record: its log's number and its offset.
type record uint64

const offsetBits = 48

func newRecord(log int, offset int64) record { return record(log)<<offsetBits | record(offset) }
func (r record) log() int                    { return int(r >> offsetBits) }
func (r record) offset() int64               { return int64(r & (1<<offsetBits - 1)) }

// An index knows which rooms have messages of which records. It has no messages: these are
// read from the log again (history.go).
//
// It consists of parts, oldest first. A record of a log is in a later part than all earlier
// records of that log. The last part, head, grows; the others are never changed. Rooms are
// known by a hash of 32 bits, so the index may name a record that has no message for a
// room; whoever reads the record sees that.
type index struct {
	limit int           // bytes
	keep  time.Duration // older parts are dropped
	seed  maphash.Seed
	parts []*part
	head  *head
	bytes int // of parts
	// complete: the index takes no older parts any more, because it has dropped or refused
	// one. It would have a hole otherwise.
	complete bool
}

// part has some records in the order in which they were published, and for each room
// their numbers in this part. It has no pointers to what it holds: 24 hours of a busy
// installation are tens of millions of records.
type part struct {
	begin   []int64 // in each log, the offset up to which records are in earlier parts. Never changed
	until   time.Time
	records []record
	rooms   []uint32 // hashes, sorted
	ends    []uint32 // where the numbers of each room end
	numbers []byte   // for each room: varints, each the distance from the one before
}

func (p *part) size() int {
	return 256 + 8*len(p.begin) + 8*len(p.records) + 8*len(p.rooms) + len(p.numbers)
}

// head is a part that grows.
type head struct {
	begin   []int64
	until   time.Time
	records []record
	byRoom  map[uint32][]uint32
}

func newHead(begin []int64) *head { return &head{begin: begin, byRoom: map[uint32][]uint32{}} }

func newIndex(at *positions, limit int, keep time.Duration) *index {
	return &index{limit: limit, keep: keep, seed: maphash.MakeSeed(), head: newHead(indexed(at.done, at.partitions))}
}

// indexed returns the positions that count for the index: rider positions are not in it,
// so their logs have none.
func indexed(done []int64, partitions int) []int64 {
	done = slices.Clone(done)
	for l := range done {
		if cursorTopics[l/partitions] == eventlog.RiderLocations {
			done[l] = -1
		}
	}
	return done
}

func (x *index) hash(room string) uint32 { return uint32(maphash.String(x.seed, room)) }

// hashes appends the hashes of the rooms of messages, each once. Messages with Latest are
// left out.
func (x *index) hashes(to []uint32, all []rooms.Message) []uint32 {
	first := len(to)
	for i := range all {
		if all[i].Latest {
			continue
		}
		for _, room := range all[i].Rooms {
			if k := x.hash(room); !slices.Contains(to[first:], k) {
				to = append(to, k)
			}
		}
	}
	return to
}

// add adds a record that has messages for the rooms.
func (h *head) add(r record, appended time.Time, hashes []uint32) {
	if len(hashes) == 0 {
		return
	}
	for _, k := range hashes {
		h.byRoom[k] = append(h.byRoom[k], uint32(len(h.records)))
	}
	h.records = append(h.records, r)
	if appended.After(h.until) {
		h.until = appended
	}
}

// full reports whether h should become a part. A part is larger if there are more logs,
// because it has the position of each.
func (h *head) full() bool { return len(h.records) >= max(4096, len(h.begin)) }

// seal makes a part of h.
func (h *head) seal() *part {
	p := &part{begin: h.begin, until: h.until, records: slices.Clone(h.records), rooms: make([]uint32, 0, len(h.byRoom)), ends: make([]uint32, 0, len(h.byRoom))}
	for k := range h.byRoom {
		p.rooms = append(p.rooms, k)
	}
	slices.Sort(p.rooms)
	for _, k := range p.rooms {
		last := uint32(0)
		for _, n := range h.byRoom[k] {
			p.numbers = binary.AppendUvarint(p.numbers, uint64(n-last))
			last = n
		}
		p.ends = append(p.ends, uint32(len(p.numbers)))
	}
	p.numbers = slices.Clip(p.numbers)
	return p
}

// grow is called after a record was added to the head of the index. at is how far the logs
// are published.
func (x *index) grow(at *positions) {
	if !x.head.full() {
		return
	}
	p := x.head.seal()
	x.parts = append(x.parts, p)
	x.bytes += p.size()
	x.head = newHead(indexed(at.done, at.partitions))
	x.evict()
}

// prepend adds older parts, the newest ones first and only as many as fit. They have all
// records after begin. prepend reports whether there is room for more.
func (x *index) prepend(begin []int64, older []*part) (more bool) {
	if x.complete {
		return false
	}
	first := len(older)
	for first > 0 && x.bytes+older[first-1].size() <= x.limit {
		first--
		x.bytes += older[first].size()
	}
	x.complete = first > 0
	switch {
	case len(older) > 0:
		x.parts = slices.Concat(older[first:], x.parts)
	case len(x.parts) > 0: // there are no records, so the oldest part begins earlier
		oldest := *x.parts[0]
		oldest.begin = begin
		x.parts = slices.Concat([]*part{&oldest}, x.parts[1:])
	default:
		x.head.begin = begin
	}
	x.evict()
	return !x.complete && x.bytes < x.limit
}

// evict drops the oldest parts: those that do not fit, and those that are too old.
func (x *index) evict() {
	for len(x.parts) > 0 && (x.bytes > x.limit || x.keep > 0 && time.Since(x.parts[0].until) > x.keep+time.Minute && !x.parts[0].until.IsZero()) {
		x.bytes -= x.parts[0].size()
		x.parts[0] = nil
		x.parts = x.parts[1:]
		x.complete = true
	}
}

// past makes parts of records from before the start. The logs may be merged in any order,
// as long as each keeps its own. They are read one after the other, so past sorts the
// records by time: what was emitted to a room stands between the events that say who was
// in the room.
type past struct {
	index   *index
	begin   []int64
	at      positions
	head    *head // has what is not in a part yet
	records []pastRecord
	hashes  []uint32
	latest  map[int]time.Time // by log
	made    []*part
}

type pastRecord struct {
	record
	at   time.Time
	ends int // of its hashes
}

// maxPast is how many records are sorted at a time.
const maxPast = 1 << 20

func (x *index) newPast(from positions) *past {
	begin := indexed(from.done, from.partitions)
	return &past{index: x, begin: begin, at: from, head: newHead(begin), latest: map[int]time.Time{}}
}

func (p *past) add(tp eventlog.TopicPartition, offset int64, appended time.Time, all []rooms.Message) {
	l := p.at.log(tp)
	if l == noLog {
		return
	}
	if appended.Before(p.latest[l]) {
		appended = p.latest[l]
	}
	p.latest[l] = appended
	p.hashes = p.index.hashes(p.hashes, all)
	p.records = append(p.records, pastRecord{newRecord(l, offset), appended, len(p.hashes)})
	if len(p.records) >= maxPast {
		p.sort()
	}
}

func (p *past) sort() {
	order := make([]int, len(p.records))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return p.records[a].at.Compare(p.records[b].at) })
	for _, i := range order {
		r, begin := p.records[i], 0
		if i > 0 {
			begin = p.records[i-1].ends
		}
		p.head.add(r.record, r.at, p.hashes[begin:r.ends])
		p.at.done[r.log()] = r.offset()
		if p.head.full() {
			p.made = append(p.made, p.head.seal())
			p.head = newHead(indexed(p.at.done, p.at.partitions))
		}
	}
	p.records, p.hashes = nil, nil
}

// parts returns the parts, the oldest first. None is empty, so there may be none.
func (p *past) parts() []*part {
	p.sort()
	if len(p.head.records) > 0 {
		p.made = append(p.made, p.head.seal())
	}
	return p.made
}

// floor returns the offset of each log after which all records are in the index.
func (x *index) floor() []int64 { return floorOf(x.parts, x.head.begin) }

// floorOf is floor of these parts and a head that begins there.
func floorOf(parts []*part, head []int64) []int64 {
	if len(parts) > 0 {
		return parts[0].begin
	}
	return head
}

// covers reports whether the index has all records after from.
func (x *index) covers(from *positions) bool { return within(x.floor(), from.done) }

// within reports whether no offset of a is after that of b.
func within(a, b []int64) bool {
	for l, o := range a {
		if o > b[l] {
			return false
		}
	}
	return true
}

// find returns the records of parts after from that may have messages for one of the rooms
// (given as hashes), in the order of the parts, until there are at least most. Everything up
// to through is then found; nil: there are no more parts. The records of parts from before
// from are not looked at.
func find(parts []*part, hashes []uint32, from *positions, most int) (found []record, through []int64) {
	for _, p := range partsAfter(parts, from) {
		if len(found) >= most {
			return found, p.begin
		}
		var numbers []uint32
		for _, k := range hashes {
			at, ok := slices.BinarySearch(p.rooms, k)
			if !ok {
				continue
			}
			begin := uint32(0)
			if at > 0 {
				begin = p.ends[at-1]
			}
			n := uint64(0)
			for b := p.numbers[begin:p.ends[at]]; len(b) > 0; {
				d, size := binary.Uvarint(b)
				b, n = b[size:], n+d
				numbers = append(numbers, uint32(n))
			}
		}
		found = appendRecords(found, p.records, numbers, from)
	}
	return found, nil
}

// partsAfter leaves out the parts that have nothing after from.
func partsAfter(parts []*part, from *positions) []*part {
	// Parts begin one after the other, so the first that matters is found by halving.
	return parts[max(0, sort.Search(len(parts), func(i int) bool { return !within(parts[i].begin, from.done) })-1):]
}

// find is the same for the head.
func (h *head) find(hashes []uint32, from *positions) []record {
	var numbers []uint32
	for _, k := range hashes {
		numbers = append(numbers, h.byRoom[k]...)
	}
	return appendRecords(nil, h.records, numbers, from)
}

func after(r record, from *positions) bool { return r.offset() > from.done[r.log()] }

func appendRecords(found, records []record, numbers []uint32, from *positions) []record {
	slices.Sort(numbers)
	for _, n := range slices.Compact(numbers) {
		if r := records[n]; after(r, from) {
			found = append(found, r)
		}
	}
	return found
}

// last calls fn for the records of a room, the last one first, until fn returns false.
func (x *index) last(room string, fn func(record) bool) {
	k := x.hash(room)
	is := x.head.byRoom[k]
	for _, n := range slices.Backward(is) {
		if !fn(x.head.records[n]) {
			return
		}
	}
	for i := range slices.Backward(x.parts) {
		p := x.parts[i]
		at := newPositions(1)
		at.done = p.begin
		found, _ := find(x.parts[i:i+1], []uint32{k}, &at, 1<<30)
		for _, r := range slices.Backward(found) {
			if !fn(r) {
				return
			}
		}
		if len(p.records) > 0 && !fn(p.records[0]) {
			return
		}
	}
}

// partialFirst moves the record that was sent in part to the front: the cursors of the
// messages behind it say that all of it was sent.
func partialFirst(found []record, from *positions) []record {
	if from.partial == noLog {
		return found
	}
	part := newRecord(from.partial, from.offset)
	slices.SortStableFunc(found, func(a, b record) int {
		is := func(r record) int {
			if r == part {
				return 0
			}
			return 1
		}
		return cmp.Compare(is(a), is(b))
	})
	return found
}
