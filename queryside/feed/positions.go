package feed

import (
	"slices"

	"tomato/eventlog"
)

// cursorTopics are the logs that feed messages come from, in the order in which
// positions and cursors number them. Another order or another topic needs another
// cursorVersion: old cursors are then answered with feed:reset.
var cursorTopics = [...]string{eventlog.Orders, eventlog.Payments, eventlog.RiderLocations, eventlog.Feed}

const noLog = -1

// positions say, for every log, what has been published, or sent to a client. One record
// can mean several messages, so at most one record beyond them may have been sent in part.
type positions struct {
	partitions int
	// done has the offset of the last record of each log of which all messages were
	// sent; -1: none. The logs are in the order of cursorTopics, and within a topic in
	// that of its partitions.
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

// positionsOf returns the positions of what has been passed.
func positionsOf(passed map[eventlog.TopicPartition]int64) positions {
	partitions := int32(1)
	for tp := range passed {
		partitions = max(partitions, tp.Partition+1)
	}
	p := newPositions(int(partitions))
	for tp, o := range passed {
		if l := p.log(tp); l != noLog {
			p.done[l] = o
		}
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

// tp returns the log with this number.
func (p *positions) tp(log int) eventlog.TopicPartition {
	return eventlog.TopicPartition{Topic: cursorTopics[log/p.partitions], Partition: int32(log % p.partitions)}
}

// ofPositions reports whether the records of a log are positions of riders.
func (p *positions) ofPositions(log int) bool {
	return cursorTopics[log/p.partitions] == eventlog.RiderLocations
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

// lacks returns the positions of other that have not been sent here, as a token.
func (p *positions) lacks(other *positions) eventlog.Token {
	t := eventlog.Token{}
	add := func(log int, offset int64) {
		if p.done[log] < offset {
			tp := p.tp(log)
			t.Add(tp.Topic, tp.Partition, offset)
		}
	}
	for l, o := range other.done {
		add(l, o)
	}
	if other.partial != noLog {
		add(other.partial, other.offset)
	}
	return t
}

// raise moves the positions on to at least those.
func (p *positions) raise(done []int64) {
	for l, o := range done {
		p.done[l] = max(p.done[l], o)
	}
}

// step is one message on the way of a client through the logs: the i-th of the n messages
// of a record.
type step struct {
	log    int
	offset int64
	i, n   int
}

// advance notes that the message has been sent. What the record that was sent in part has
// besides is then for others.
func (p *positions) advance(s step) {
	if p.partial != noLog && (p.partial != s.log || p.offset != s.offset) {
		p.done[p.partial] = max(p.done[p.partial], p.offset)
		p.partial = noLog
	}
	if s.i == s.n-1 {
		p.partial, p.done[s.log] = noLog, max(p.done[s.log], s.offset)
	} else {
		p.partial, p.offset, p.messages = s.log, s.offset, s.i+1
	}
}
