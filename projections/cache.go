package projections

import "sync"

// A cache has the states of aggregates as one generation's writer has written them last.
// It holds cacheBytes of states as they are in the database; in memory, and with the rest
// of an entry, they are up to twice as much. It forgets those that were not used for the
// longest time. The zero value is empty. A nil cache is always empty. It is safe for
// concurrent use.
//
// Nobody writes into a state that is in the cache: a fold returns a new state, and copies
// what it changes.
type cache[S any] struct {
	mu sync.Mutex
	// New entries, and those that are used, are in young. When young is half of the cache,
	// it becomes old, and the old ones are forgotten.
	young, old map[string]cached[S]
	bytes      int // of young
}

// cached is a row as it was written last.
type cached[S any] struct {
	state   S
	version int64 // 0: the row must be read
	xmin    uint32
	bytes   int
}

const (
	cacheBytes = 16 << 20
	entryBytes = 256 // what an entry counts beside the state's JSON
)

// get returns an aggregate to which events can be added, or nil if its row must be read.
// An aggregate that the cache does not know and that begins now is taken to have no row.
func (c *cache[S]) get(id string, begins bool) *folded[S] {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	e, ok := c.young[id]
	if !ok {
		if e, ok = c.old[id]; ok {
			c.add(id, e)
		}
	}
	switch {
	case ok && e.version > 0:
		return &folded[S]{id: id, version: e.version, state: e.state, row: e.version, xmin: e.xmin, cached: true}
	case !ok && begins:
		return &folded[S]{id: id, cached: true}
	}
	return nil
}

// put enters those of rows that were written.
func (c *cache[S]) put(rows map[string]*folded[S]) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, f := range rows {
		if f.text != "" {
			c.add(id, cached[S]{f.state, f.row, f.xmin, len(f.text)})
		}
	}
}

// mistrust makes get ask for the rows of these aggregates, until they are put.
func (c *cache[S]) mistrust(ids []string) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		c.add(id, cached[S]{})
	}
}

func (c *cache[S]) add(id string, e cached[S]) {
	if c.young == nil {
		c.young = map[string]cached[S]{}
	}
	if before, ok := c.young[id]; ok {
		c.bytes -= before.bytes + entryBytes
	}
	c.young[id] = e
	c.bytes += e.bytes + entryBytes
	if c.bytes > cacheBytes/2 {
		c.young, c.old, c.bytes = nil, c.young, 0
	}
}
