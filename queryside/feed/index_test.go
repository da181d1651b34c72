package feed

import (
	"fmt"
	"testing"
	"time"

	"tomato/domain/rooms"
	"tomato/eventlog"
)

func ordersLog(p int32) eventlog.TopicPartition {
	return eventlog.TopicPartition{Topic: eventlog.Orders, Partition: p}
}

// chunk returns what past makes of one record for each offset after from up to to, each
// with a message for a room of its own.
func chunk(x *index, from, to int64, messages bool) *past {
	at := newPositions(1)
	at.done[0] = from
	p := x.newPast(at)
	for o := from + 1; o <= to; o++ {
		p.add(ordersLog(0), o, time.Now(), []rooms.Message{{Rooms: []string{fmt.Sprint("order:", o)}, Latest: !messages}})
	}
	return p
}

// The index has every record after its floor, also if it had to drop or refuse parts
// while the history is read back.
func TestTheIndexHasNoHole(t *testing.T) {
	t.Parallel()
	const start = 30_000
	at := newPositions(1)
	at.done[0] = start
	prepend := func(x *index, from, to int64) bool {
		p := chunk(x, from, to, true)
		return x.prepend(p.begin, p.parts())
	}
	grow := func(x *index, n int64) int64 {
		at := at.clone()
		for range n {
			at.done[0]++
			x.head.add(newRecord(0, at.done[0]), time.Now(), []uint32{x.hash(fmt.Sprint("order:", at.done[0]))})
			x.grow(&at)
		}
		return at.done[0]
	}
	for name, build := range map[string]func(x *index) (more bool, end int64){
		"a part that does not fit": func(x *index) (bool, int64) {
			if prepend(x, 10_000, start) {
				t.Error("there is said to be room for more after a part was refused")
			}
			return prepend(x, 9_990, 10_000), start
		},
		"a part dropped while another is read": func(x *index) (bool, int64) {
			if !prepend(x, 26_000, start) {
				t.Error("there is no room for a small part")
			}
			p := chunk(x, 25_990, 26_000, true)
			end := grow(x, 20_000)
			return x.prepend(p.begin, p.parts()), end
		},
	} {
		x := newIndex(&at, 200_000, 24*time.Hour)
		more, end := build(x)
		if more {
			t.Error(name, "there is said to be room for more")
		}
		from := newPositions(1)
		from.done[0] = x.floor()[0]
		if x.bytes > x.limit || from.done[0] >= end-4096 {
			t.Error(name, "the index has", x.bytes, "bytes and begins at", from.done[0])
		}
		missing := 0
		for o := from.done[0] + 1; o <= end; o++ {
			hashes := []uint32{x.hash(fmt.Sprint("order:", o))}
			found, _ := find(x.parts, hashes, &from, 10)
			if len(found)+len(x.head.find(hashes, &from)) == 0 {
				missing++
			}
		}
		if missing > 0 {
			t.Error(name, "the index lacks", missing, "records after its floor")
		}
	}
}

// A part of the history that has no messages moves the floor of the index, and takes no
// memory.
func TestAPartWithoutMessagesTakesNoMemory(t *testing.T) {
	t.Parallel()
	at := newPositions(1)
	at.done[0] = 100
	x := newIndex(&at, 200_000, 24*time.Hour)
	p := chunk(x, 90, 100, false)
	if parts := p.parts(); len(parts) != 0 || !x.prepend(p.begin, parts) || x.floor()[0] != 90 {
		t.Error(len(parts), "parts, and the index begins at", x.floor()[0])
	}
	p = chunk(x, 80, 90, true)
	x.prepend(p.begin, p.parts())
	bytes := x.bytes
	p = chunk(x, 70, 80, false)
	if !x.prepend(p.begin, p.parts()) || x.floor()[0] != 70 || x.bytes != bytes || len(x.parts) != 1 {
		t.Error("the index begins at", x.floor()[0], "and has", len(x.parts), "parts with", x.bytes, "bytes")
	}
}
