package bench

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"tomato/cmd/tomato/server"
	"tomato/eventlog"
	"tomato/eventlog/consumer"
	"tomato/migrations"
	"tomato/projections"
)

const (
	// rebuildWorkers is how many partitions the limit of rebuild reads and copies at
	// once, and indexWorkers how many indexes it makes at once: as many as a rebuild.
	rebuildWorkers = 4
	indexWorkers   = 2
	// paymentsPerSecond is the rate that a rebuild of a read model without a history of
	// events should reach.
	paymentsPerSecond = 150_000
	// rebuildConns is how many connections the tool rebuild has.
	rebuildConns = 8
)

// rebuild measures rebuilds of the read models orders and payments, until the new
// generation serves. The limit is what no rebuild can do without: it reads the same
// topic, copies the same rows into the same tables without indexes, with as many workers,
// and then makes the same indexes. It does not make the rows from the events, compares
// nothing and hands nothing over.
func (b *run) rebuild(ctx context.Context) error {
	h, err := b.writeInterleaved(ctx, cmp.Or(b.Count, historyOrders))
	if err != nil {
		return err
	}
	c, err := b.serveConfig(server.RoleProject)
	if err != nil {
		return err
	}
	s, err := b.serve(ctx, c, server.Options{})
	if err != nil {
		return err
	}
	b.tell("the generations that serve are filled")
	if err := passed(ctx, s.ReadModels(), h.token(), projections.Orders, projections.Payments); err != nil {
		return err
	}
	models, closeModels, err := b.toolModels(ctx)
	if err != nil {
		return err
	}
	defer closeModels()
	l := &rebuildLimit{b: b, db: models.DB}
	if err := l.prepare(ctx, models, h); err != nil {
		return err
	}
	if err := b.profile(); err != nil {
		return err
	}
	limit, value, err := b.alternating(ctx, "orders", l.measure,
		func(ctx context.Context) (map[string]float64, error) {
			return b.rebuildOnce(ctx, models, projections.Orders)
		})
	if err != nil {
		return err
	}
	payments := h.events / lifeSteps * wholePayment
	_, ofPayments, err := b.alternating(ctx, "payments", nil,
		func(ctx context.Context) (map[string]float64, error) {
			return b.rebuildOnce(ctx, models, projections.Payments)
		})
	if err != nil {
		return err
	}
	rate := func(events int64, ms float64) float64 { return float64(events) / (ms / 1000) }
	limitRate := rate(h.events, limit["whole_ms"])
	b.add("events_per_s", "events/s", rate(h.events, value["whole_ms"]), limitRate)
	b.add("without_verify_events_per_s", "events/s", rate(h.events, value["whole_ms"]-value["verifying_ms"]), limitRate)
	b.add("tables_events_per_s", "events/s", rate(h.events, value["filling_ms"]+value["indexing_ms"]), limitRate)
	b.add("fill_ms", "ms", value["filling_ms"], limit["filling_ms"])
	b.add("indexes_ms", "ms", value["indexing_ms"], limit["indexing_ms"])
	b.add("verify_ms", "ms", value["verifying_ms"], 0)
	b.add("hand_over_ms", "ms", value["handing_over_ms"], 0)
	b.add("events", "events", float64(h.events), 0)
	b.add("payments_events_per_s", "events/s", rate(payments, ofPayments["whole_ms"]), paymentsPerSecond)
	b.add("payments_tables_events_per_s", "events/s", rate(payments, ofPayments["filling_ms"]+ofPayments["indexing_ms"]), paymentsPerSecond)
	return nil
}

// toolModels returns the read models in the bench's database as a tool in a process of
// its own has them, and a function that closes them.
func (b *run) toolModels(ctx context.Context) (*projections.ReadModels, func(), error) {
	cfg, err := pgxpool.ParseConfig(b.DatabaseURL)
	if err != nil {
		return nil, nil, err
	}
	cfg.MaxConns = rebuildConns
	db, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, nil, err
	}
	return &projections.ReadModels{DB: db, DatabaseURL: b.DatabaseURL, Kafka: b.kafka, Positions: consumer.NewPositions(db), Log: b.log}, db.Close, nil
}

// rebuildOnce rebuilds a read model and drops the generation that served. It returns how
// long the rebuild took until the new generation served, and how long each phase took.
func (b *run) rebuildOnce(ctx context.Context, models *projections.ReadModels, model string) (map[string]float64, error) {
	took := map[string]float64{}
	start := time.Now()
	phase, since := projections.Phase(""), start
	ms := func(since time.Time) float64 { return float64(time.Since(since)) / float64(time.Millisecond) }
	runtime := &consumer.Runtime{Kafka: b.kafka, Partitions: b.Partitions, DB: models.DB, Log: b.log}
	_, err := models.Rebuild(ctx, model, projections.RebuildOptions{Runtime: runtime, DropOld: true, Progress: func(p projections.Progress) {
		if p.Phase == phase {
			return
		}
		if phase != "" {
			took[string(phase)+"_ms"] += ms(since)
		}
		if p.Phase == projections.PhaseSwitched {
			took["whole_ms"] = ms(start)
		}
		phase, since = p.Phase, time.Now()
	}})
	return took, err
}

// limitSchema is the schema of the limit's tables.
const limitSchema = "bench_limit"

// rebuildLimit is the limit of rebuild.
type rebuildLimit struct {
	b       *run
	db      *pgxpool.Pool
	tables  []string
	ends    map[int32]int64 // of the topic's partitions
	indexes []string        // the statements that make them
}

// file returns the name of the file that has the rows of one partition in a table, in
// the text format of COPY.
func (l *rebuildLimit) file(table string, partition int32) string {
	return filepath.Join(l.b.dir, fmt.Sprintf("%s.%d", table, partition))
}

// prepare copies the rows of the serving generation into files, one for each table and
// partition.
func (l *rebuildLimit) prepare(ctx context.Context, models *projections.ReadModels, h history) error {
	l.ends = map[int32]int64{}
	for tp, end := range h.ends {
		if tp.Topic == eventlog.Orders {
			l.ends[tp.Partition] = end
		}
	}
	g, err := models.Serving(ctx, projections.Orders)
	if err != nil {
		return err
	}
	rows, err := l.db.Query(ctx, `SELECT tablename FROM pg_tables WHERE schemaname = $1 AND tablename NOT LIKE 'schema_migrations%' ORDER BY 1`, g.Schema())
	if err != nil {
		return err
	}
	if l.tables, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		return err
	}
	for _, table := range l.tables {
		if err := l.copyOut(ctx, g, table); err != nil {
			return fmt.Errorf("table %s: %w", table, err)
		}
	}
	return nil
}

// copyOut writes the files of a table. Its first column is the id of an order.
func (l *rebuildLimit) copyOut(ctx context.Context, g projections.Generation, table string) (err error) {
	conn, err := l.db.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	files := make([]*bufio.Writer, l.b.Partitions)
	for p := range files {
		f, err := os.Create(l.file(table, int32(p)))
		if err != nil {
			return err
		}
		files[p] = bufio.NewWriterSize(f, 64<<10)
		defer func() { err = errors.Join(err, files[p].Flush(), f.Close()) }()
	}
	out, in := io.Pipe()
	var eg errgroup.Group
	eg.Go(func() error {
		_, err := conn.Conn().PgConn().CopyTo(ctx, in, `COPY `+pgx.Identifier{g.Schema(), table}.Sanitize()+` TO STDOUT`)
		in.CloseWithError(err) // io.EOF for nil
		return err
	})
	eg.Go(func() error {
		for r := bufio.NewReaderSize(out, 64<<10); ; {
			line, err := r.ReadString('\n')
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err == nil {
				id, _, _ := strings.Cut(line, "\t")
				_, err = files[eventlog.PartitionFor(id, l.b.Partitions)].WriteString(line)
			}
			if err != nil {
				out.CloseWithError(err)
				return err
			}
		}
	})
	return eg.Wait()
}

// makeTables makes the limit's tables, without indexes.
func (l *rebuildLimit) makeTables(ctx context.Context) error {
	if _, err := l.db.Exec(ctx, `DROP SCHEMA IF EXISTS `+limitSchema+` CASCADE`); err != nil {
		return err
	}
	if err := migrations.ReadModel(ctx, l.b.DatabaseURL, limitSchema, projections.Orders); err != nil {
		return err
	}
	rows, err := l.db.Query(ctx, `
		SELECT CASE WHEN c.oid IS NULL THEN pg_get_indexdef(i.indexrelid)
		            ELSE format('ALTER TABLE %s ADD CONSTRAINT %I %s', i.indrelid::regclass, c.conname, pg_get_constraintdef(c.oid)) END,
		       CASE WHEN c.oid IS NULL THEN format('DROP INDEX %s', i.indexrelid::regclass)
		            ELSE format('ALTER TABLE %s DROP CONSTRAINT %I', i.indrelid::regclass, c.conname) END
		FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid
		LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid
		WHERE t.relnamespace = $1::regnamespace AND t.relname = ANY ($2)`, limitSchema, l.tables)
	if err != nil {
		return err
	}
	statements := map[string]string{} // what drops each index, by what makes it
	var add, drop string
	if _, err := pgx.ForEachRow(rows, []any{&add, &drop}, func() error {
		statements[add] = drop
		return nil
	}); err != nil {
		return err
	}
	l.indexes = slices.Sorted(maps.Keys(statements))
	for _, drop := range statements {
		if _, err := l.db.Exec(ctx, drop); err != nil {
			return err
		}
	}
	return nil
}

// measure is one round.
func (l *rebuildLimit) measure(ctx context.Context) (map[string]float64, error) {
	if err := l.makeTables(ctx); err != nil {
		return nil, err
	}
	start := time.Now()
	eg, ectx := errgroup.WithContext(ctx)
	eg.SetLimit(rebuildWorkers)
	for p := range l.ends {
		eg.Go(func() error { return l.partition(ectx, p) })
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	filled := time.Now()
	eg, ectx = errgroup.WithContext(ctx)
	eg.SetLimit(indexWorkers)
	for _, sql := range l.indexes {
		eg.Go(func() error {
			_, err := l.db.Exec(ectx, sql)
			return err
		})
	}
	err := eg.Wait()
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
	return map[string]float64{"whole_ms": ms(time.Since(start)), "filling_ms": ms(filled.Sub(start)), "indexing_ms": ms(time.Since(filled))}, err
}

// partition reads one partition of the topic and copies its rows.
func (l *rebuildLimit) partition(ctx context.Context, p int32) error {
	h := history{ends: map[eventlog.TopicPartition]int64{{Topic: eventlog.Orders, Partition: p}: l.ends[p]}}
	size := 0
	if err := l.b.bareRead(ctx, h, func(_ context.Context, records []*kgo.Record) error {
		for _, r := range records {
			size += len(r.Value)
		}
		return nil
	}); err != nil {
		return err
	}
	conn, err := l.db.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	for _, table := range l.tables {
		f, err := os.Open(l.file(table, p))
		if err != nil {
			return err
		}
		_, err = conn.Conn().PgConn().CopyFrom(ctx, f, `COPY `+pgx.Identifier{limitSchema, table}.Sanitize()+` FROM STDIN`)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}
