package consumer

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"tomato/eventlog"
	"tomato/eventlog/pgerr"
)

// eachWorker is the state of an Each consumer's loop, of one goroutine. Lanes
// run in goroutines of their own and report on results.
type eachWorker struct {
	*worker
	window  []*slot          // not done, in offset order, done ones between
	lanes   map[string]*lane // by key; only those with something in them
	ready   []string         // keys of lanes that wait for a free place
	running int
	results chan laneResult

	begun    int64 // highest offset that was begun
	draining bool
	looked   time.Time // when the lanes' calls were last looked at
}

// slot is a record's place in the window.
type slot struct {
	*item
	done bool
}

// lane is what is under way and waits for one key.
type lane struct {
	busy    bool
	slots   []*slot      // fresh records, the first under way if busy and parked is nil
	parked  *parkedItem  // under way or about to be
	calling atomic.Int64 // since when its handler is at work, Unix nanoseconds; 0: it is not
}

type laneResult struct {
	key    string
	failed *parkedItem // a fresh record's new row
	now    parkedItem  // a parked one as its row is now
	gone   bool
	err    error // to give up on
}

// runEach is the loop of Each consumers: a key's events in order, up to Lanes
// keys at once, the position after the oldest record that is not done.
func (w *worker) runEach() error {
	e := &eachWorker{worker: w, lanes: map[string]*lane{}, results: make(chan laneResult, w.g.c.Lanes)}
	err := e.loop()
	// Lanes still under way are waited for, so that nothing of this worker is
	// left when it is done. They heed drain and ctx. On a drain, records before
	// the last one begun are handled too: the position cannot pass them, and who
	// comes next would repeat what is done behind it.
	e.draining = true
	for {
		if errors.Is(err, errStopped) && e.ctx.Err() == nil {
			e.start()
		}
		if e.running == 0 {
			break
		}
		r := <-e.results
		e.running--
		if r.err == nil {
			r.err = e.take1(r)
		}
		if r.err != nil {
			if errors.Is(err, errStopped) {
				err = r.err
			}
			e.ready = nil // a dependency is away, or worse: the rest is repeated
		}
	}
	e.advance()
	return err
}

func (e *eachWorker) loop() error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		e.beat()
		e.lookAtCalls()
		if e.stopping() {
			return errStopped
		}
		e.takeTold(func(key string) bool { return e.lanes[key] != nil })
		e.startParked()
		if room := e.g.c.MaxBatch - len(e.window); room > 0 {
			if recs := e.worker.take(room); len(recs) > 0 {
				b, err := e.scan(recs, &scanRoom{})
				if err != nil {
					return err
				}
				if err := e.admit(b.items); err != nil {
					return err
				}
				e.advance()
			}
		}
		e.start()
		// Wake-ups that nothing can be done about are cheap: they are merged.
		timer.Reset(e.pause())
		select {
		case r := <-e.results:
			e.running--
			if r.err != nil {
				return r.err
			}
			if err := e.take1(r); err != nil {
				return err
			}
			e.advance()
		case <-e.wake:
		case <-timer.C:
		case <-e.drain:
		case <-e.ctx.Done():
		}
	}
}

// lookAtCalls notes since when the longest call is under way. The loop's own
// heartbeat says nothing of lanes: one whose handler never returned stood still
// unseen.
func (e *eachWorker) lookAtCalls() {
	now := time.Now()
	if now.Sub(e.looked) < time.Second {
		return
	}
	e.looked = now
	oldest := int64(0)
	for _, l := range e.lanes {
		if since := l.calling.Load(); since > 0 && (oldest == 0 || since < oldest) {
			oldest = since
		}
	}
	e.calling.Store(oldest)
}

// admit puts fresh records into their lanes, or behind the parked ones of
// their key.
func (e *eachWorker) admit(items []*item) error {
	var queued []*slot
	for _, i := range items {
		s := &slot{item: i}
		e.window = append(e.window, s)
		if e.blocked(i) {
			queued = append(queued, s)
			continue
		}
		e.push(s)
	}
	return e.queueBehind(queued)
}

func (e *eachWorker) push(s *slot) {
	l := e.lanes[s.key]
	if l == nil {
		l = &lane{}
		e.lanes[s.key] = l
		e.ready = append(e.ready, s.key)
	}
	l.slots = append(l.slots, s)
}

// queueBehind writes the rows of records that queue behind a parked one; then
// they are done as far as the position goes.
func (e *eachWorker) queueBehind(slots []*slot) error {
	if len(slots) == 0 {
		return nil
	}
	items := make([]*item, len(slots))
	for n, s := range slots {
		items[n] = s.item
	}
	rows, err := e.behindParked(items)
	if err != nil {
		return err
	}
	if err := e.writeRows(rows); err != nil {
		return err
	}
	e.addParked(rows)
	for _, s := range slots {
		s.done = true
	}
	return nil
}

// writeRows commits new parked rows; it insists.
func (w *worker) writeRows(rows []*parkedItem) error {
	return w.insist(func() error {
		return w.tx(w.ctx, func(tx pgx.Tx) error {
			if err := w.cp.hold(w.ctx, tx); err != nil {
				return err
			}
			return insertParked(w.ctx, tx, w.cp, rows)
		})
	})
}

// startParked makes lanes for parked records that are due. A key with fresh
// records under way (older ones, handled again after a restart) comes later.
func (e *eachWorker) startParked() {
	for _, it := range e.parked.due(time.Now()) {
		if it.offset >= e.read.Next || e.lanes[it.key] != nil {
			continue
		}
		e.lanes[it.key] = &lane{parked: it}
		e.ready = append(e.ready, it.key)
	}
}

// start sets lanes to work as far as there are places.
func (e *eachWorker) start() {
	for e.running-int(e.suspended.Load()) < e.g.c.Lanes && len(e.ready) > 0 {
		key := e.ready[0]
		e.ready = e.ready[1:]
		l := e.lanes[key]
		if e.draining && (l.parked != nil || l.slots[0].event.Offset > e.begun) {
			continue
		}
		l.busy = true
		e.running++
		if l.parked != nil {
			it := e.parked.snapshot(l.parked)
			go func() {
				r := laneResult{key: key}
				l.calling.Store(time.Now().UnixNano())
				r.now, r.gone, r.err = e.runParked(it)
				l.calling.Store(0)
				e.results <- r
			}()
			continue
		}
		s := l.slots[0]
		e.begun = max(e.begun, s.event.Offset)
		go func() {
			failed, err := e.handle(s.item, &l.calling)
			e.results <- laneResult{key: key, failed: failed, err: err}
		}()
	}
}

// handle runs one fresh record: repeated in place, then parked.
func (w *worker) handle(i *item, calling *atomic.Int64) (*parkedItem, error) {
	var away absence
	defer away.gaveUp()
	var place suspension
	defer place.end(w)
	for try := 1; ; {
		err := error(i.bad)
		if err == nil {
			calling.Store(time.Now().UnixNano())
			err = w.call(func(ctx context.Context) error { return w.g.c.Each(ctx, *i.event) })
			calling.Store(0)
		}
		switch {
		case err == nil:
			away.over()
			w.g.r.state.metrics.handled(w.g.c.Name, 1)
			return nil, nil
		case w.ctx.Err() != nil:
			return nil, errStopped
		case pgerr.Unavailable(err):
			place.begin(w)
			if err := away.wait(w, err, func() bool { return place.resume(w) }); err != nil {
				return nil, err
			}
			continue
		}
		away.over()
		if try < w.g.c.InPlaceTries && !errors.Is(err, eventlog.ErrPoison) {
			try++
			if err := w.sleep(inPlaceWait(try)); err != nil {
				return nil, err
			}
			continue
		}
		if w.telemetry {
			w.skip(i.event.Offset, err)
			return nil, nil
		}
		it, err := w.newlyFailed(i, err)
		if err != nil {
			return nil, err
		}
		return it, w.writeRows([]*parkedItem{it})
	}
}

// suspension is a lane's while it waits for what is away: its place is another
// key's meanwhile, which may need something else. Those that wait and then go on
// have as many places of their own.
type suspension struct{ counted, resumed bool }

func (s *suspension) begin(w *worker) {
	if s.resumed {
		<-w.resumed
		s.resumed = false
	}
	if !s.counted {
		s.counted = true
		w.suspended.Add(1)
		w.poke()
	}
}

func (s *suspension) resume(w *worker) bool {
	select {
	case w.resumed <- struct{}{}:
		s.resumed = true
	default:
	}
	return s.resumed
}

func (s *suspension) end(w *worker) {
	if s.resumed {
		<-w.resumed
	}
	if s.counted {
		w.suspended.Add(-1)
	}
}

// take1 takes a lane's result in.
func (e *eachWorker) take1(r laneResult) error {
	l := e.lanes[r.key]
	l.busy = false
	switch {
	case l.parked != nil:
		it := l.parked
		l.parked = nil
		if err := e.settle(it, r.now, r.gone); err != nil {
			return err
		}
	case r.failed != nil:
		e.addParked([]*parkedItem{r.failed})
		l.slots[0].done = true
		rest := l.slots[1:]
		l.slots = nil
		if err := e.queueBehind(rest); err != nil {
			return err
		}
	default:
		l.slots[0].done = true
		l.slots = l.slots[1:]
	}
	if len(l.slots) > 0 {
		e.ready = append(e.ready, r.key)
	} else {
		delete(e.lanes, r.key)
	}
	return nil
}

// advance moves the position over what is done.
func (e *eachWorker) advance() {
	n := 0
	for n < len(e.window) && e.window[n].done {
		n++
	}
	e.window = e.window[n:]
	if len(e.window) == 0 {
		e.window = nil
		e.at(e.read)
		e.head(time.Time{})
		return
	}
	e.at(e.window[0].before)
	e.head(e.window[0].event.Timestamp)
}
