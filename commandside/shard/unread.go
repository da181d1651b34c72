package shard

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"tomato/domain"
	"tomato/eventlog"
)

// This file owns the marks of aggregates that have an event which this build cannot
// read.

// UnknownEvent is the error of a command on an aggregate whose log has an event that
// this build cannot read. Either the build does not know the event's type, because a
// newer build has written it, or the event's data or version is not valid. The state
// of the aggregate after that event is not known, so no command on it is decided. The
// error is no refusal, because a build that can read the event will decide the same
// command. Other aggregates are not affected.
type UnknownEvent struct {
	Topic string `json:"topic"` // of the aggregate
	ID    string `json:"id"`
	Type  string `json:"type"` // of the event; TYPE/2 for version 2 of its data
}

func (u *UnknownEvent) Error() string { return "unknown_event: " + u.Detail() }

// Detail returns the explanation for the caller.
func (u *UnknownEvent) Detail() string {
	return fmt.Sprintf("The log of this %s holds an event of type %q that this build cannot read. Nothing is decided on it before a build that can takes over.",
		nouns[logOf(u.Topic)], u.Type)
}

var nouns = map[int]string{orders: "order", payments: "payment", riders: "rider", restaurants: "restaurant"}

// unreadable is the mark of an aggregate whose log has an event that this build
// cannot read. The aggregate's state is the one before that event, and no later event
// is folded. Its deadlines issue no commands, and it is not evicted.
type unreadable struct {
	Type string `json:"type"` // of the event
	Why  string `json:"why"`
	// Build is the build that could not read the event. Another build does not use a
	// snapshot with this mark, and reads the logs instead.
	Build string `json:"build,omitempty"`
	// Undecoded is set if the event could not be decoded. Data is then the event's
	// data. A build that can decode it does not use a snapshot with this mark.
	Data      []byte `json:"data,omitempty"`
	Undecoded bool   `json:"undecoded,omitempty"`
	Version   int    `json:"version,omitempty"` // of Data; 0 for the first
}

// answer returns the error of a command on the marked aggregate.
func (u *unreadable) answer(kind int, id string) error {
	text := eventlog.LogText(u.Type)
	if u.Version > 1 && u.Version < eventlog.UnknownSchema {
		text += "/" + strconv.Itoa(u.Version)
	}
	return &UnknownEvent{Topic: eventlog.AggregateTopics[kind], ID: id, Type: text}
}

// readable reports whether this build can decode the event that caused the mark.
func (u *unreadable) readable(kind int) bool {
	if !u.Undecoded {
		return false
	}
	_, err := decodeEvent(eventlog.AggregateTopics[kind], u.Type, max(1, u.Version), u.Data)
	return err == nil
}

// errGap means that an event's version is not the next one.
var errGap = errors.New("its version is not the next one")

// foldNext decodes the next valid event of an aggregate and calls evolve with it. If
// that is not possible, it returns a mark with the reason. A panic is also such a
// reason, because the same event would cause it again at every start.
func foldNext(e *eventlog.Event, version int64, evolve func(domain.Event)) (mark *unreadable) {
	defer func() {
		if p := recover(); p != nil {
			mark = &unreadable{Type: e.Type, Why: fmt.Sprint("folding it panics: ", p)}
		}
	}()
	switch {
	case e.Fault != nil:
		return &unreadable{Type: e.Type, Why: e.Fault.Error()}
	case e.Version != version+1:
		return &unreadable{Type: e.Type, Why: fmt.Sprintf("%v: %d where %d must follow", errGap, e.Version, version+1)}
	}
	ev, err := decodeEvent(e.Topic, e.Type, e.DataVersion(), e.Data)
	if err != nil {
		return &unreadable{Type: e.Type, Why: err.Error(), Data: bytes.Clone(e.Data), Undecoded: true, Version: e.Schema}
	}
	evolve(ev)
	return nil
}

// markOf returns the aggregate's mark, or nil if it can be read.
func (e *entry) markOf(kind int) *unreadable {
	switch {
	case e == nil || e.marks == nil:
		return nil
	case kind == payments:
		return e.marks[1]
	}
	return e.marks[0]
}

// setMark marks the aggregate.
func (e *entry) setMark(kind int, mark *unreadable) {
	if e.marks == nil {
		e.marks = &[2]*unreadable{}
	}
	if kind == payments {
		e.marks[1] = mark
	} else {
		e.marks[0] = mark
	}
}

// undecidable returns an *UnknownEvent if no command on the aggregate can be decided,
// and otherwise nil. The reason is the aggregate's own mark or, for a payment, also
// the mark of its order, because payment commands look at the order. The mark of a
// payment does not stop commands on its order: only Expire looks at the payment, and
// decide checks the mark there.
func (e *entry) undecidable(kind int) error {
	if u := e.markOf(kind); u != nil {
		return u.answer(kind, e.id)
	}
	if u := e.markOf(orders); kind == payments && u != nil {
		return u.answer(orders, e.id)
	}
	return nil
}

// header returns the mark as a snapshot has it in a header.
func (u *unreadable) header() []byte {
	b, _ := json.Marshal(u) // cannot fail: it has only strings, bytes and a bool
	return b
}

// reportUnreadable counts and logs an aggregate that has an event which this build
// cannot read.
func (s *shard) reportUnreadable(e *eventlog.Event, mark *unreadable) {
	s.owner.metrics.unknown.WithLabelValues(e.Topic).Inc()
	s.log.Error("an event cannot be read: commands on its aggregate are 503 unknown_event, others go on", "topic", e.Topic, "partition", e.Partition,
		"offset", e.Offset, "id", e.Subject, "type", eventlog.LogText(mark.Type), "err", mark.Why)
}
