package feed

import "tomato/domain/rooms"

// recent has the messages of some records, those that were added last, up to a number of
// bytes. It is not safe for concurrent use.
type recent struct {
	limit int
	bytes int
	all   map[record][]rooms.Message
	order []record // oldest first, from first on
	first int
}

func newRecent(limit int) *recent { return &recent{limit: limit, all: map[record][]rooms.Message{}} }

func messagesSize(all []rooms.Message) int {
	n := 128
	for i := range all {
		n += 256 + len(all[i].Payload)
		for _, r := range all[i].Rooms {
			n += len(r) + 32
		}
	}
	return n
}

func (c *recent) get(r record) (all []rooms.Message, ok bool) {
	all, ok = c.all[r]
	return all, ok
}

func (c *recent) add(r record, all []rooms.Message) {
	if _, ok := c.all[r]; ok {
		return
	}
	c.all[r] = all
	c.order = append(c.order, r)
	c.bytes += messagesSize(all)
	for c.bytes > c.limit && c.first < len(c.order) {
		old := c.order[c.first]
		c.first++
		c.bytes -= messagesSize(c.all[old])
		delete(c.all, old)
	}
	if c.first > 1024 && c.first > len(c.order)/2 {
		c.order = append([]record(nil), c.order[c.first:]...)
		c.first = 0
	}
}
