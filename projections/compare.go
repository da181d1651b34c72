package projections

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// maxDifferences is how many differences a Comparison names.
const maxDifferences = 100

// Comparison is what the comparison of the rows of two generations has found. It covers
// the tables that are folded from the log.
type Comparison struct {
	Skipped    string           `json:"skipped,omitempty"`  // why nothing was compared; "" if it was
	Rows       int64            `json:"rows"`               // that both have
	Missing    int64            `json:"missing"`            // rows that only the first generation has
	Extra      int64            `json:"extra"`              // rows that only the second one has
	Changed    int64            `json:"changed"`            // rows that both have, with other values
	Columns    map[string]int64 `json:"columns,omitempty"`  // of the changed rows: in how many of them each <table>.<column> differs
	Unshared   []string         `json:"unshared,omitempty"` // tables and columns that only one has; their values are not compared
	ParkedKeys int              `json:"parkedKeys"`         // keys with parked events in the first generation; their rows are left out
	// NewlyParked are keys with parked events in the second generation alone: it cannot
	// fold what the first one has folded. Their rows are left out, too.
	NewlyParked int64 `json:"newlyParked"`
	// Differences are the first ones of each table, in the order of the key.
	Differences []Difference `json:"differences,omitempty"`
}

// Equal reports whether no difference was found.
func (c *Comparison) Equal() bool { return c.differences() == 0 }

func (c *Comparison) differences() int64 { return c.Missing + c.Extra + c.Changed + c.NewlyParked }

// Difference is a row that differs.
type Difference struct {
	Table   string   `json:"table"` // of kind parked: the topic
	Key     string   `json:"key"`
	Kind    string   `json:"kind"`              // missing, extra, changed or parked, as in Comparison
	Columns []string `json:"columns,omitempty"` // of kind changed
}

func (d Difference) String() string {
	s := d.Kind + ": " + d.Table + " " + d.Key
	if len(d.Columns) > 0 {
		s += " (" + strings.Join(d.Columns, ", ") + ")"
	}
	return s
}

// side is one of the two generations of a comparison, in a transaction that sees it as of
// one moment.
type side struct {
	Generation
	tx pgx.Tx
}

// comparer compares the rows of two generations. It reads both in the order of their keys
// and holds one row of each.
type comparer struct {
	a, b    side
	count   func(n int64)
	parked  map[string]bool // keys that are left out
	out     *Comparison
	listed  int // differences of the present table that are named
	columns []comparedColumn
	keys    []comparedColumn
}

// comparedColumn is a column of a table that is compared.
type comparedColumn struct {
	name, sqlType string
	key           int  // its place in the primary key, from 1 on; 0: none
	byBytes       bool // its texts are sorted by their bytes
}

// Compare compares the rows of two generations as one moment has them. Rows differ of
// which one generation has passed events that the other has not, so it tells something
// only about generations at the same positions. Its errors are those of the database.
func (m *ReadModels) Compare(ctx context.Context, a, b Generation) (Comparison, error) {
	if a.Model != b.Model {
		return Comparison{}, fmt.Errorf("%s and %s are of different read models", a, b)
	}
	var c Comparison
	err := m.bothAt(ctx, func(first, second pgx.Tx) (err error) {
		c, err = compare(ctx, side{a, first}, side{b, second}, func(int64) {})
		return err
	})
	if err != nil {
		return c, fmt.Errorf("comparing %s and %s: %w", a, b, err)
	}
	return c, nil
}

// bothAt runs fn with two transactions that see the database as of the same moment: one
// takes over the other's snapshot.
func (m *ReadModels) bothAt(ctx context.Context, fn func(first, second pgx.Tx) error) error {
	return m.snapshot(ctx, func(first pgx.Tx) error {
		var snapshot string
		if err := first.QueryRow(ctx, `SELECT pg_export_snapshot()`).Scan(&snapshot); err != nil {
			return err
		}
		return m.snapshot(ctx, func(second pgx.Tx) error {
			if _, err := second.Exec(ctx, `SET TRANSACTION SNAPSHOT '`+snapshot+`'`); err != nil {
				return err
			}
			return fn(first, second)
		})
	})
}

// snapshot runs fn in a transaction that sees the database as of one moment. It has a
// connection of its own.
func (m *ReadModels) snapshot(ctx context.Context, fn func(tx pgx.Tx) error) error {
	conn, err := m.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	return pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, fn)
}

// compare compares the folded tables of a and b.
func compare(ctx context.Context, a, b side, count func(n int64)) (Comparison, error) {
	c := &comparer{a: a, b: b, count: count, parked: map[string]bool{}, out: &Comparison{Columns: map[string]int64{}}}
	if err := c.leaveOutParked(ctx); err != nil {
		return Comparison{}, err
	}
	for _, part := range foldedParts(a.Model) {
		if err := c.table(ctx, part); err != nil {
			return Comparison{}, fmt.Errorf("table %s: %w", part.table, err)
		}
	}
	return *c.out, nil
}

// leaveOutParked finds the keys whose rows are left out. A key that is parked in b alone
// is a difference: b cannot fold an event that a has folded.
func (c *comparer) leaveOutParked(ctx context.Context) error {
	for _, s := range []side{c.a, c.b} {
		rows, err := s.tx.Query(ctx, `SELECT DISTINCT topic, key FROM tomato.parked WHERE consumer = $1 AND generation = $2 ORDER BY topic, key`, s.Model, s.Number)
		if err != nil {
			return err
		}
		var topic string
		var key []byte
		if _, err := pgx.ForEachRow(rows, []any{&topic, &key}, func() error {
			switch {
			case c.parked[string(key)]:
				return nil
			case s.Generation == c.a.Generation:
				c.out.ParkedKeys++
			default:
				c.out.NewlyParked++
				c.list(topic, [][]byte{key}, "parked")
			}
			c.parked[string(key)] = true
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// shape reads the columns that are compared; none if there is no such table.
func (s side) shape(ctx context.Context, part foldedRows) ([]comparedColumn, error) {
	rows, err := s.tx.Query(ctx, `
		SELECT a.attname, format_type(a.atttypid, a.atttypmod), coalesce(k.n, 0)::int,
		       a.attcollation = 'pg_catalog."default"'::regcollation AND d.datcollate IN ('C', 'POSIX', 'C.UTF-8', 'C.utf8') AND coalesce(to_jsonb(d)->>'datlocprovider', 'c') = 'c'
		FROM pg_attribute a JOIN pg_database d ON d.datname = current_database()
		LEFT JOIN (SELECT i.indrelid, u.attnum, u.n FROM pg_index i, unnest(i.indkey::int2[]) WITH ORDINALITY u(attnum, n) WHERE i.indisprimary) k
		       ON k.indrelid = a.attrelid AND k.attnum = a.attnum
		WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND ($2::text[] IS NULL OR a.attname = ANY ($2)) ORDER BY a.attnum`, s.Schema()+"."+part.table, part.columns)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (c comparedColumn, err error) {
		err = row.Scan(&c.name, &c.sqlType, &c.key, &c.byBytes)
		return c, err
	})
}

// table compares what is folded of one table.
func (c *comparer) table(ctx context.Context, part foldedRows) error {
	table := part.table
	shapeA, err := c.a.shape(ctx, part)
	if err != nil {
		return err
	}
	shapeB, err := c.b.shape(ctx, part)
	if err != nil {
		return err
	}
	only := func(s side, shape, other []comparedColumn) {
		for _, col := range shape {
			if len(other) > 0 && !slices.ContainsFunc(other, func(o comparedColumn) bool { return o.name == col.name }) {
				c.out.Unshared = append(c.out.Unshared, fmt.Sprintf("%s.%s.%s", s.Generation, table, col.name))
			}
		}
		if len(shape) > 0 && len(other) == 0 {
			c.out.Unshared = append(c.out.Unshared, fmt.Sprintf("%s.%s", s.Generation, table))
		}
	}
	only(c.a, shapeA, shapeB)
	only(c.b, shapeB, shapeA)
	c.keys, c.columns, c.listed = nil, nil, 0
	for _, col := range shapeB {
		same := slices.IndexFunc(shapeA, func(o comparedColumn) bool { return o.name == col.name })
		switch shared := same >= 0; {
		case col.key > 0 && shared:
			col.byBytes = col.byBytes && shapeA[same].byBytes
			c.keys = append(c.keys, col)
		case shared:
			c.columns = append(c.columns, col)
		}
	}
	slices.SortFunc(c.keys, func(x, y comparedColumn) int { return x.key - y.key })
	switch {
	case len(shapeA) == 0 || len(shapeB) == 0:
		return nil
	case len(c.keys) == 0:
		return errors.New("the two have no primary key in common")
	}
	return c.merge(ctx, part)
}

// cursor reads the rows of one generation in the order of their keys.
type cursor struct {
	rows pgx.Rows
	row  [][]byte // the values as text, those of the key first; nil at the end
}

func (c *comparer) open(ctx context.Context, s side, part foldedRows) (*cursor, error) {
	var values, order []string
	for _, k := range c.keys {
		values, order = append(values, quoted(k.name)+`::text`), append(order, k.orderBy())
	}
	for _, col := range c.columns {
		values = append(values, quoted(col.name)+`::text`)
	}
	rows, err := s.tx.Query(ctx, `SELECT `+strings.Join(values, ", ")+` FROM `+part.from(s.Generation)+` ORDER BY `+strings.Join(order, ", "),
		pgx.QueryResultFormats{pgx.TextFormatCode})
	if err != nil {
		return nil, err
	}
	return &cursor{rows: rows}, nil
}

func quoted(name string) string { return pgx.Identifier{name}.Sanitize() }

// next goes on to the next row whose key is not left out.
func (u *cursor) next(leaveOut map[string]bool) error {
	for u.rows.Next() {
		if u.row = u.rows.RawValues(); !leaveOut[string(u.row[0])] {
			return nil
		}
	}
	u.row = nil
	return u.rows.Err()
}

// merge reads the table in both generations and compares row by row.
func (c *comparer) merge(ctx context.Context, part foldedRows) error {
	table := part.table
	x, err := c.open(ctx, c.a, part)
	if err != nil {
		return err
	}
	defer x.rows.Close()
	y, err := c.open(ctx, c.b, part)
	if err != nil {
		return err
	}
	defer y.rows.Close()
	if err := errors.Join(x.next(c.parked), y.next(c.parked)); err != nil {
		return err
	}
	for x.row != nil || y.row != nil {
		order := c.compareKeys(x.row, y.row)
		switch {
		case order < 0:
			c.out.Missing++
			c.list(table, x.row, "missing")
		case order > 0:
			c.out.Extra++
			c.list(table, y.row, "extra")
		default:
			c.out.Rows++
			c.values(table, x.row, y.row)
		}
		if order <= 0 {
			if err := x.next(c.parked); err != nil {
				return err
			}
		}
		if order >= 0 {
			c.count(1)
			if err := y.next(c.parked); err != nil {
				return err
			}
		}
	}
	return nil
}

// compareKeys returns the order of the keys of two rows, one of which may be nil, which
// is behind all others.
func (c *comparer) compareKeys(x, y [][]byte) int {
	switch {
	case x == nil:
		return 1
	case y == nil:
		return -1
	}
	for i, k := range c.keys {
		if order := k.compare(x[i], y[i]); order != 0 {
			return order
		}
	}
	return 0
}

// numeric reports whether the values of a column are whole numbers.
func (col comparedColumn) numeric() bool {
	return col.sqlType == "bigint" || col.sqlType == "integer" || col.sqlType == "smallint"
}

// orderBy returns by what Postgres sorts the column, so that compare knows the order. If
// texts are sorted by their bytes anyway, an index is in this order.
func (col comparedColumn) orderBy() string {
	switch {
	case col.numeric() || col.sqlType == "text" && col.byBytes:
		return quoted(col.name)
	case col.sqlType == "text":
		return quoted(col.name) + ` COLLATE "C"`
	}
	return quoted(col.name) + `::text COLLATE "C"`
}

// compare returns the order of two values, as text, of the column.
func (col comparedColumn) compare(x, y []byte) int {
	if col.numeric() {
		a, _ := strconv.ParseInt(string(x), 10, 64) // Postgres has written it
		b, _ := strconv.ParseInt(string(y), 10, 64)
		return cmp.Compare(a, b)
	}
	return bytes.Compare(x, y)
}

// values compares the other columns of two rows with the same key.
func (c *comparer) values(table string, x, y [][]byte) {
	var differ []string
	for i, col := range c.columns {
		a, b := x[len(c.keys)+i], y[len(c.keys)+i]
		if !bytes.Equal(a, b) || (a == nil) != (b == nil) {
			differ = append(differ, col.name)
			c.out.Columns[table+"."+col.name]++
		}
	}
	if len(differ) > 0 {
		c.out.Changed++
		c.list(table, x, "changed", differ...)
	}
}

// list names the difference of a row, unless enough of this table are named.
func (c *comparer) list(table string, row [][]byte, kind string, columns ...string) {
	if c.listed >= maxDifferences/2 || len(c.out.Differences) >= maxDifferences {
		return
	}
	c.listed++
	key := row[:max(1, len(c.keys))]
	c.out.Differences = append(c.out.Differences, Difference{Table: table, Key: string(bytes.Join(key, []byte("/"))), Kind: kind, Columns: columns})
}
