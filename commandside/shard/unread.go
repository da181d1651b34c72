package shard

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"tomato/domain"
	"tomato/eventlog"
)

// UnknownEvent is the answer to a command on an aggregate whose log holds an event
// that this build cannot read: of a type that it does not know (a newer build has
// written it), or one whose data or version it cannot make sense of. Nothing is
// known of the aggregate from that event on, so nothing is decided on it. It is no
// refusal: it says neither yes nor no, and a build that knows the event will decide
// the same command. Other aggregates are not concerned.
type UnknownEvent struct {
	Topic string `json:"topic"` // the aggregate's type
	ID    string `json:"id"`
	Type  string `json:"type"` // of the event
}

func (u *UnknownEvent) Error() string { return "unknown_event: " + u.Detail() }

// Detail says it to the caller.
func (u *UnknownEvent) Detail() string {
	return fmt.Sprintf("The log of this %s holds an event of type %q that this build cannot read. Nothing is decided on it before a build that can takes over.",
		nouns[logOf(u.Topic)], u.Type)
}

var nouns = map[int]string{orders: "order", payments: "payment", riders: "rider", restaurants: "restaurant"}

// unreadable is the mark of an aggregate whose log holds an event that this build
// cannot read: its state is as of the event before, and what follows in the log is
// not folded. Deadlines do not fire on it, and it does not leave memory.
type unreadable struct {
	Type string `json:"type"` // of the event
	Why  string `json:"why"`
	// Build could not read it. Another build tries again: a snapshot with a mark of
	// another build is not believed.
	Build string `json:"build,omitempty"`
	// Data is the event's where it could not be decoded: a snapshot with this mark
	// is not to be used by a build that can decode it.
	Data      []byte `json:"data,omitempty"`
	Undecoded bool   `json:"undecoded,omitempty"`
}

func (u *unreadable) answer(kind int, id string) error {
	return &UnknownEvent{Topic: eventlog.AggregateTopics[kind], ID: id, Type: eventlog.LogText(u.Type)}
}

// readable says whether this build can decode the event that made the mark.
func (u *unreadable) readable(kind int) bool {
	if !u.Undecoded {
		return false
	}
	_, err := decodeEvent(eventlog.AggregateTopics[kind], u.Type, u.Data)
	return err == nil
}

// errGap says that an event's version is not the next one.
var errGap = errors.New("its version is not the next one")

// foldNext folds the next valid event of an aggregate with evolve, which is given the
// decoded event. The mark it returns says why that cannot be done; nil: it is done.
// A panic is such a reason: it would come again at every start.
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
	ev, err := decodeEvent(e.Topic, e.Type, e.Data)
	if err != nil {
		return &unreadable{Type: e.Type, Why: err.Error(), Data: bytes.Clone(e.Data), Undecoded: true}
	}
	evolve(ev)
	return nil
}

// --- marks of what is held

// unreadOf is the aggregate's mark, nil where it can be read.
func (e *entry) unreadOf(kind int) *unreadable {
	switch {
	case e == nil || e.unread == nil:
		return nil
	case kind == payments:
		return e.unread[1]
	}
	return e.unread[0]
}

func (e *entry) setUnread(kind int, mark *unreadable) {
	if e.unread == nil {
		e.unread = &[2]*unreadable{}
	}
	if kind == payments {
		e.unread[1] = mark
	} else {
		e.unread[0] = mark
	}
}

// undecidable is why no command on the aggregate can be decided, nil where one can:
// its own mark, and for a payment its order's too, whose facts payment commands
// look at. A payment's mark does not keep its order from going on: of the commands
// on orders, Expire alone looks at the payment, and decide sees to that.
func (e *entry) undecidable(kind int) error {
	if u := e.unreadOf(kind); u != nil {
		return u.answer(kind, e.id)
	}
	if u := e.unreadOf(orders); kind == payments && u != nil {
		return u.answer(orders, e.id)
	}
	return nil
}

// header is the mark as a snapshot has it.
func (u *unreadable) header() []byte {
	b, _ := json.Marshal(u) // strings and bytes only
	return b
}
