package projections

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// Generation names one complete set of tables of a read model.
type Generation struct {
	Model  string `json:"readModel"`
	Number int    `json:"generation"`
}

func (g Generation) String() string { return fmt.Sprintf("%s_g%d", g.Model, g.Number) }

// Schema returns the name of the schema that has the generation's tables. It is a
// valid SQL name and needs no quotes.
func (g Generation) Schema() string { return g.String() }

// State is the state of a generation, as the column state has it. The package comment
// says which state follows which.
type State string

// The states of a generation.
const (
	StateFilling    State = "filling"     // a rebuild fills the tables and creates their indexes
	StateCatchingUp State = "catching_up" // a rebuild folds the events that came meanwhile, and compares the rows with those that serve
	StateVerified   State = "verified"    // compared: the processes of its fold keep it up to date, and it is about to serve
	StateServing    State = "serving"     // it answers queries
	StateStandby    State = "standby"     // it served before, and is kept up to date for a way back
	StateGone       State = "gone"        // nobody uses it any more, and its tables are being dropped
)

// keptUp reports whether the processes that project keep a generation in this state up
// to date.
func (s State) keptUp() bool {
	return s == StateVerified || s == StateServing || s == StateStandby
}

// Unfinished reports whether a generation in this state belongs to a rebuild that has
// not switched to it yet.
func (s State) Unfinished() bool {
	return s == StateFilling || s == StateCatchingUp || s == StateVerified
}

// generation is what the database says of a generation.
type generation struct {
	state State
	fold  string // the version of the fold that makes its rows
}

// generations is what the database had at one moment. It is never changed.
type generations struct {
	serving map[string]int // the number of the serving generation, by read model
	all     map[Generation]generation
}

// fold returns the version of the fold by which this process makes the rows of the
// read model.
func (m *ReadModels) fold(model string) string {
	if f, ok := m.otherFolds[model]; ok {
		return f
	}
	return FoldVersion(model)
}

// answering returns the generation of the read model from which this process answers
// queries. This is the serving one, if the process has the fold that made it. Otherwise
// it is the standby, if that is of the process's own fold: two builds that run side by
// side answer from one generation each. If there is none, it is the serving one all the
// same, as it is. A verified generation does not answer: it may still be behind until it
// is handed over. ok is false if the read model has no generation.
func (m *ReadModels) answering(now *generations, model string) (g Generation, ok bool) {
	n, ok := now.serving[model]
	if !ok {
		return Generation{}, false
	}
	serving, fold := Generation{model, n}, m.fold(model)
	if now.all[serving].fold == fold {
		return serving, true
	}
	for g, is := range now.all {
		if g.Model == model && is.fold == fold && is.state == StateStandby {
			return g, true
		}
	}
	return serving, true
}

// hasGone reports whether a generation of the read model has gone and is not removed yet.
func (now *generations) hasGone(model string) bool {
	for g, is := range now.all {
		if g.Model == model && is.state == StateGone {
			return true
		}
	}
	return false
}

// projects reports whether this process keeps the generation up to date if it has the
// role: the generation must be made by the fold of this process.
func (m *ReadModels) projects(g Generation, is generation) bool {
	return is.state.keptUp() && is.fold == m.fold(g.Model)
}

// RebuildDue returns the read models that have no generation of this process's fold,
// sorted. Their rows are still served as another build has made them, but this process
// does not bring them up to date before `tomato rebuild` has made a generation.
func (m *ReadModels) RebuildDue() []string {
	now := m.seen.Load()
	if now == nil {
		return nil
	}
	var due []string
	for model := range now.serving {
		if _, known := registry[model]; !known {
			continue // of another build
		}
		if g, ok := m.answering(now, model); ok && now.all[g].fold != m.fold(model) {
			due = append(due, model)
		}
	}
	slices.Sort(due)
	return due
}

// RebuildAdvice says in a sentence which rebuilds are due, and what to type. It is "" if
// none is due.
func (m *ReadModels) RebuildAdvice() string {
	due := m.RebuildDue()
	if len(due) == 0 {
		return ""
	}
	commands := make([]string, len(due))
	for i, model := range due {
		commands[i] = "`tomato rebuild " + model + "`"
	}
	return "another version of this program has made the rows of the read models " + strings.Join(due, ", ") +
		", so this one serves them as they are and does not bring them up to date: run " + strings.Join(commands, ", ") + " with this version"
}

// Refresh reads the generations from the database. Its errors are those of the
// database.
func (m *ReadModels) Refresh(ctx context.Context) error {
	ticket := m.tickets.Add(1)
	now, err := m.readGenerations(ctx)
	if err != nil {
		return fmt.Errorf("read the generations: %w", err)
	}
	m.store(now, ticket)
	return nil
}

func (m *ReadModels) readGenerations(ctx context.Context) (*generations, error) {
	now := &generations{serving: map[string]int{}, all: map[Generation]generation{}}
	rows, err := m.DB.Query(ctx, `
		SELECT g.model, g.generation, g.state, g.fold, r.serving IS NOT NULL
		FROM tomato.generations g LEFT JOIN tomato.read_models r ON r.model = g.model AND r.serving = g.generation`)
	if err != nil {
		return nil, err
	}
	var g Generation
	var is generation
	var serving bool
	_, err = pgx.ForEachRow(rows, []any{&g.Model, &g.Number, &is.state, &is.fold, &serving}, func() error {
		now.all[g] = is
		if serving {
			now.serving[g.Model] = g.Number
		}
		return nil
	})
	return now, err
}

// store makes what was read the present copy, unless what was read later is stored
// already. ticket is from before the reading.
func (m *ReadModels) store(now *generations, ticket int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if ticket < m.stored {
		return
	}
	m.stored = ticket
	if old := m.seen.Load(); old != nil && maps.Equal(old.serving, now.serving) && maps.Equal(old.all, now.all) {
		return
	}
	m.seen.Store(now)
	if m.change != nil {
		close(m.change)
		m.change = nil
	}
	if advice := m.RebuildAdvice(); advice != m.advised {
		m.advised = advice
		if advice != "" {
			m.log().Warn("a rebuild is due: " + advice)
		}
	}
}

// changed returns the present copy of the generations, and a channel that is closed
// when the copy changes. It reads the generations if that was never done.
func (m *ReadModels) changed(ctx context.Context) (*generations, <-chan struct{}, error) {
	if m.seen.Load() == nil {
		if err := m.Refresh(ctx); err != nil {
			return nil, nil, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.change == nil {
		m.change = make(chan struct{})
	}
	return m.seen.Load(), m.change, nil
}

// Follow refreshes the copy of the generations until ctx ends. Every process that
// queries or projects runs it once. It logs the first of several failures in a row.
func (m *ReadModels) Follow(ctx context.Context) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		err := m.Refresh(ctx)
		if err == nil {
			err = m.sample(ctx)
		}
		if err != nil && !failing && ctx.Err() == nil {
			m.log().Warn("the generations of the read models cannot be read", "err", err)
		}
		failing = err != nil
	}
}

// Serving returns the generation of the read model from which this process answers
// queries: the one that serves, or the standby of the process's own fold. It fails if
// the read model has none, or if the generations were never read and cannot be read now.
func (m *ReadModels) Serving(ctx context.Context, model string) (Generation, error) {
	now, _, err := m.changed(ctx)
	if err != nil {
		return Generation{}, err
	}
	g, ok := m.answering(now, model)
	if !ok {
		return Generation{}, fmt.Errorf("read model %s has no generation: it was never made", model)
	}
	return g, nil
}
