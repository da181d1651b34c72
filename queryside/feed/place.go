package feed

import (
	"slices"

	"tomato/eventlog"
)

// A base is what an instance had published when it appended a record about it to topic
// feed. Its id is the offset of this record, by which every instance can read it. It is
// never changed.
type base struct {
	id    int64  // eventlog.NoFeedBase: it could not be appended, and no cursor can name it
	key   string // of this record alone, while after a restore another one may have its offset
	epoch int    // of the hub whose base it is: each one of an epoch is ahead of those before. 0: it is another instance's
	positions
}

// A place is how far one client is: a base, and in which logs the client is elsewhere.
//
// A client needs the positions of those logs only in which its rooms have had messages
// since the base. So a place, and with it a cursor, is short, however many logs there are.
// In all other logs the base stands for the client's position, though the hub may be
// further: there is nothing for its rooms in between.
type place struct {
	base    *base
	changes []change // in the order of the logs
	part    change   // the record that was sent in part; its log is noLog: none
	sent    int      // how many messages of that record were sent
}

// change is the position of a client in one log. It is mostly ahead of the base. It is
// behind it if the client began at an older Consistency-Token.
type change struct {
	log    int
	offset int64
}

// newBase returns what the log says of a base. The caller sets the epoch.
func newBase(b eventlog.FeedBase) *base {
	return &base{id: b.ID, key: b.Key, positions: positionsOf(b.Passed)}
}

func newPlace(b *base) place { return place{base: b, part: change{log: noLog}} }

// set sets the position in one log.
func (p *place) set(log int, offset int64) {
	i, ok := slices.BinarySearchFunc(p.changes, log, func(c change, log int) int { return c.log - log })
	if ok {
		p.changes[i].offset = offset
		return
	}
	p.changes = slices.Insert(p.changes, i, change{log, offset})
}

// done returns the position in one log.
func (p *place) done(log int) int64 {
	if i, ok := slices.BinarySearchFunc(p.changes, log, func(c change, log int) int { return c.log - log }); ok {
		return p.changes[i].offset
	}
	return p.base.done[log]
}

// raise moves the position in one log on to at least offset.
func (p *place) raise(log int, offset int64) {
	if offset > p.done(log) {
		p.set(log, offset)
	}
}

// advance notes that the client has been sent the message.
func (p *place) advance(s step) {
	if p.part.log != noLog && p.part != (change{s.log, s.offset}) {
		p.raise(p.part.log, p.part.offset)
		p.part.log = noLog
	}
	if s.i == s.n-1 {
		p.part.log = noLog
		p.raise(s.log, s.offset)
	} else {
		p.part, p.sent = change{s.log, s.offset}, s.i+1
	}
}

// rebase makes the place relative to a later base. The client must have been sent
// everything for its rooms that the base has.
func (p *place) rebase(b *base) {
	if b == nil || b == p.base {
		return
	}
	if old := p.base; old.epoch == 0 || old.epoch != b.epoch {
		// Another instance, which has read the logs in another order, may be ahead in some.
		for l, o := range old.done {
			if o > b.done[l] && p.done(l) == o {
				p.set(l, o)
			}
		}
	}
	p.base = b
	p.changes = slices.DeleteFunc(p.changes, func(c change) bool { return c.offset <= b.done[c.log] })
	if len(p.changes) == 0 {
		p.changes = nil
	}
	if p.part.log != noLog && p.part.offset <= b.done[p.part.log] {
		p.part.log = noLog
	}
}

// positions returns the positions in all logs.
func (p *place) positions() positions {
	all := p.base.clone()
	for _, c := range p.changes {
		all.done[c.log] = c.offset
	}
	if p.part.log != noLog {
		all.partial, all.offset, all.messages = p.part.log, p.part.offset, p.sent
	}
	return all
}
