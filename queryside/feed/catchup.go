package feed

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"tomato/domain/rooms"
	"tomato/eventlog"
)

// CatchUp reads the logs further back than the projector has.
type CatchUp interface {
	// CatchUp calls fn for the records after from up to and including to, those
	// of one log in order, from one goroutine. Only one CatchUp runs at a time.
	// After an error, nothing that fn was given may be used.
	CatchUp(ctx context.Context, from, to map[eventlog.TopicPartition]int64, fn func(tp eventlog.TopicPartition, offset int64, appended time.Time, messages []rooms.Message)) error
}

// Limits of catching up.
const (
	maxCatchUpRecords = 20_000 // of all logs, for one client
	catchUpTimeout    = 10 * time.Second
)

// A waitingClient has a cursor that is older than the window.
type waitingClient struct {
	at    positions
	tried chan struct{}
}

// catchUp reads the log again to widen the window down to the cursor. After a
// restart the window is narrow, and all clients come back at once: one reader
// serves all who wait. catchUp returns when widening has succeeded or failed, or
// when ctx ends; resume then looks at the window as it is.
func (h *Hub) catchUp(ctx context.Context, reader CatchUp, log *slog.Logger, c *cursor) {
	h.mu.Lock()
	if !h.ready || h.draining || c.partitions != h.at.partitions {
		h.mu.Unlock()
		return
	}
	if n := h.missing(&c.positions); n == 0 || n > maxCatchUpRecords {
		h.mu.Unlock()
		return
	}
	b := &waitingClient{c.positions, make(chan struct{})}
	h.behind = append(h.behind, b)
	if !h.catching {
		h.catching = true
		go h.runCatchUp(reader, log)
	}
	h.mu.Unlock()
	select {
	case <-b.tried:
	case <-ctx.Done():
	}
}

// missing returns the number of records between the positions and the window.
func (h *Hub) missing(p *positions) (records int64) {
	for l, floor := range h.floor {
		if floor > p.done[l] && cursorTopics[l/p.partitions] != eventlog.RiderLocations {
			records += floor - p.done[l]
		}
	}
	return records
}

func (h *Hub) runCatchUp(reader CatchUp, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), catchUpTimeout)
	defer cancel()
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.behind) > 0 {
		all := h.behind
		h.behind = nil
		from, to := map[eventlog.TopicPartition]int64{}, map[eventlog.TopicPartition]int64{}
		for l, floor := range h.floor {
			topic := cursorTopics[l/h.at.partitions]
			least := floor
			for _, b := range all {
				if b.at.partitions == h.at.partitions {
					least = min(least, b.at.done[l])
				}
			}
			if least < floor && topic != eventlog.RiderLocations {
				tp := eventlog.TopicPartition{Topic: topic, Partition: int32(l % h.at.partitions)}
				from[tp], to[tp] = least, floor
			}
		}
		if len(from) > 0 {
			epoch := h.epoch
			var read []*entry
			h.mu.Unlock()
			err := reader.CatchUp(ctx, from, to, func(tp eventlog.TopicPartition, offset int64, appended time.Time, messages []rooms.Message) {
				for i, m := range messages {
					read = append(read, &entry{log: -1, offset: offset, i: i, n: len(messages), Message: m, tp: tp, appended: appended})
				}
			})
			h.mu.Lock()
			if err != nil {
				log.Info("the feed's window could not be widened, clients reload", "err", err)
			} else if epoch == h.epoch {
				h.widen(from, to, read)
			}
		}
		for _, b := range all {
			close(b.tried)
		}
	}
	h.catching = false
}

// widen puts older messages before the window.
func (h *Hub) widen(from, to map[eventlog.TopicPartition]int64, read []*entry) {
	for tp, floor := range to {
		if h.floor[h.at.log(tp)] != floor {
			return // the window is full: it has lost its oldest meanwhile
		}
	}
	// The logs may be merged in any order, as long as each keeps its own. Time is
	// the most natural.
	latest := map[eventlog.TopicPartition]time.Time{}
	for _, e := range read {
		e.log = h.at.log(e.tp)
		if e.appended.Before(latest[e.tp]) {
			e.appended = latest[e.tp]
		}
		latest[e.tp] = e.appended
	}
	slices.SortStableFunc(read, func(a, b *entry) int { return a.appended.Compare(b.appended) })
	byRoom := map[string][]*entry{}
	h.least -= uint64(len(read))
	for i, e := range read {
		e.number = h.least + uint64(i)
		h.bytes += e.size()
		for _, r := range e.Rooms {
			byRoom[r] = append(byRoom[r], e)
		}
	}
	for room := range byRoom {
		h.byRoom[room] = append(byRoom[room], h.byRoom[room]...)
	}
	h.window = append(read, h.window[h.windowAt:]...)
	h.windowAt = 0
	for tp, o := range from {
		h.floor[h.at.log(tp)] = o
	}
	h.evict()
}

// evict drops the oldest messages while there are too many.
func (h *Hub) evict() {
	for h.bytes > h.cfg.WindowBytes {
		old := h.window[h.windowAt]
		h.window[h.windowAt] = nil
		h.windowAt++
		h.bytes -= old.size()
		h.floor[old.log] = old.offset
		for _, r := range old.Rooms {
			if rest := h.byRoom[r][1:]; len(rest) > 0 {
				h.byRoom[r] = rest
			} else {
				delete(h.byRoom, r)
			}
		}
	}
	if h.windowAt > 1024 && h.windowAt > len(h.window)/2 {
		h.window = slices.Clone(h.window[h.windowAt:])
		h.windowAt = 0
	}
}
