package projections

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

// A readModel is one read model: its tables, and what is special about it.
//
// Each read model is declared in a file of its own (orders.go, payments.go,
// restaurants.go, riders.go), which registers it. Everything else takes the list
// from here: consumers, topics, rebuild, status. So a new read model needs one
// file in this package, one folder of SQL under migrations and one file of
// queries in package queryside.
type readModel struct {
	// name is also the name of its consumer, of its folder under migrations, and
	// the first part of its schemas.
	name string
	// tables has the table that the events of each topic write.
	tables map[string]table
	// halves are the folded columns of tables whose other columns are not folded.
	halves []foldedRows
	// copyUnfolded, if set, copies the tables that cannot be folded from the log
	// again. A rebuild calls it after it has filled the generation to, and before
	// that generation is kept up to date, once more if a copy is too old. from is the
	// serving generation.
	copyUnfolded func(ctx context.Context, db *pgxpool.Pool, from, to Generation) error
}

// foldedRows are rows of a table in the database that are a fold of the log. They are
// equal in two generations that have passed the same events.
type foldedRows struct {
	table   string
	columns []string // nil: all
	where   string   // "": all rows
}

// from returns the table in a generation, with the condition, as it follows FROM.
func (f foldedRows) from(g Generation) string {
	if f.where == "" {
		return g.Schema() + `.` + f.table
	}
	return g.Schema() + `.` + f.table + ` WHERE ` + f.where
}

// foldedParts returns everything in a read model that is a fold, sorted by table.
func foldedParts(model string) []foldedRows {
	parts := slices.Clone(registry[model].halves)
	for _, name := range foldedNames(model) {
		parts = append(parts, foldedRows{table: name})
	}
	slices.SortFunc(parts, func(a, b foldedRows) int { return strings.Compare(a.table, b.table) })
	return parts
}

// registry has all read models by name. It is written while the package's
// variables are initialised, and only read afterwards.
var registry = map[string]readModel{}

// register adds a read model. It returns the name, so that a file can call it in
// the declaration of a variable.
func register(m readModel) string {
	if _, ok := registry[m.name]; ok {
		panic(fmt.Sprintf("two read models have the name %s", m.name))
	}
	registry[m.name] = m
	return m.name
}

// Models returns the names of all read models, sorted.
func Models() []string {
	return slices.Sorted(maps.Keys(registry))
}

// FoldVersion returns the version of the fold that makes the rows of the read model: a
// short text that is the same for two builds if they make the same rows of the same
// log. It is "" if there is no such read model. It is derived from the source of the
// read model and of the domain, so it also changes with some changes that make no
// difference to the rows, but never with a comment.
func FoldVersion(model string) string { return foldVersions[model] }

// Topics returns the topics that the read model is made of, sorted. It returns
// nil if there is no such read model.
func Topics(model string) []string {
	return slices.Sorted(maps.Keys(registry[model].tables))
}

// foldedTables returns the tables of the read model that a rebuild fills from the
// log, by topic.
func foldedTables(model string) map[string]foldedTable {
	folded := map[string]foldedTable{}
	for topic, t := range registry[model].tables {
		if f, ok := t.(foldedTable); ok {
			folded[topic] = f
		}
	}
	return folded
}

// foldedNames returns the names of the tables in the database that a rebuild
// fills from the log.
func foldedNames(model string) (names []string) {
	for _, t := range foldedTables(model) {
		names = append(names, t.names()...)
	}
	return names
}
