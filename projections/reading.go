package projections

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"tomato/eventlog"
	"tomato/eventlog/pgerr"
)

// Read waits until the generation that answers for each of models has passed after in
// the topics that it is made of. Then it calls query with the schemas of these
// generations, in the order of models. It fails with eventlog.ErrBehind if the wait
// takes longer than MaxWait. All other errors are those of query or the database.
//
// The statements of query name the schema, so a query finishes on the generation that
// it began with, and the next Read notices a switch. If a generation retires while Read
// waits for it, Read waits for the one in its place. If it is dropped before query has
// used it, Read calls query again; query must allow for that.
func (m *ReadModels) Read(ctx context.Context, after eventlog.Token, models []string, query func(schemas []string) error) error {
	until := time.Now().Add(m.maxWait())
	return m.read(ctx, models, query, func(model string) (Generation, error) { return m.await(ctx, model, after, until) })
}

// readWithin is Read for callers who prefer an incomplete answer to a long wait: it
// waits for most at the longest, and then calls query anyway. passed reports whether
// the generations had passed after when query was called.
func (m *ReadModels) readWithin(ctx context.Context, most time.Duration, after eventlog.Token, models []string, query func(schemas []string) error) (passed bool, err error) {
	until := time.Now().Add(most)
	passed = true
	err = m.read(ctx, models, query, func(model string) (Generation, error) {
		g, err := m.await(ctx, model, after, until)
		if errors.Is(err, eventlog.ErrBehind) {
			passed = false
			return m.Serving(ctx, model)
		}
		return g, err
	})
	return passed, err
}

// readTries is how often a query is run, at most, when its generations are dropped.
const readTries = 3

func (m *ReadModels) read(ctx context.Context, models []string, query func(schemas []string) error, await func(model string) (Generation, error)) error {
	for try := 1; ; try++ {
		schemas := make([]string, len(models))
		for i, model := range models {
			g, err := await(model)
			if err != nil {
				return err
			}
			schemas[i] = g.Schema()
		}
		err := query(schemas)
		if try == readTries || !undefined(err) {
			return err
		}
		if err := m.Refresh(ctx); err != nil {
			return err
		}
	}
}

// Reached returns what the generations with these schemas have passed by now, or somewhat
// less. Where two of them are made of the same log, it is the lesser one. Logs of which
// they have passed nothing are left out. It fails with an error of the database.
func (m *ReadModels) Reached(_ context.Context, schemas []string) (eventlog.Token, error) {
	all := eventlog.Token{}
	for _, schema := range schemas {
		model, number, _ := strings.Cut(schema, "_g")
		n, err := strconv.Atoi(number)
		if err != nil {
			return nil, fmt.Errorf("%q is no schema of a generation", schema)
		}
		token, err := m.Positions.Reached(model, n)
		if err != nil {
			return nil, err
		}
		for tp, o := range token {
			if old, ok := all[tp]; !ok || o < old {
				all[tp] = o
			}
		}
	}
	return all, nil
}

// undefined reports whether Postgres says that a table or schema does not exist.
// Its generation was dropped then.
func undefined(err error) bool {
	return slices.Contains([]string{"42P01", "3F000"}, pgerr.Code(err))
}

func (m *ReadModels) maxWait() time.Duration {
	if m.MaxWait == 0 {
		return defaultMaxWait
	}
	return m.MaxWait
}

var errChanged = errors.New("the generations have changed")

// await returns the generation that answers for the read model, once it has passed
// after. If another one takes its place meanwhile, it waits for that one. It fails with
// eventlog.ErrBehind at the time until.
func (m *ReadModels) await(ctx context.Context, model string, after eventlog.Token, until time.Time) (Generation, error) {
	topics := Topics(model)
	touched := false
	for tp := range after {
		touched = touched || slices.Contains(topics, tp.Topic)
	}
	for {
		_, changed, err := m.changed(ctx)
		if err != nil {
			return Generation{}, err
		}
		g, err := m.Serving(ctx, model)
		if err != nil || !touched {
			return g, err
		}
		if err = m.waitFor(ctx, g, topics, after, until, changed); !errors.Is(err, errChanged) {
			return g, err
		}
	}
}

// waitFor waits until g has passed after. It fails with eventlog.ErrBehind at the time
// until, and with errChanged when changed is closed before g has passed after.
func (m *ReadModels) waitFor(ctx context.Context, g Generation, topics []string, after eventlog.Token, until time.Time, changed <-chan struct{}) error {
	bounded, cancel := context.WithDeadlineCause(ctx, until, eventlog.ErrBehind)
	defer cancel()
	waiting, stop := context.WithCancelCause(bounded)
	defer stop(nil)
	go func() {
		select {
		case <-changed:
			stop(errChanged)
		case <-waiting.Done():
		}
	}()
	err := m.Positions.WaitFor(waiting, g.Model, g.Number, topics, after)
	if err != nil && ctx.Err() == nil && bounded.Err() != nil {
		return fmt.Errorf("%s: %w", g, eventlog.ErrBehind)
	}
	return err
}
