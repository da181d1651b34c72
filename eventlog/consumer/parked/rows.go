package parked

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype/zeronull"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/eventlog"
)

const columns = `id, rev, source_offset, key, state, attempt, due_at, class, error, first_failed_at, last_failed_at, copy_topic, copy_offset`

// orNull makes a zero time NULL.
func orNull(t time.Time) zeronull.Timestamptz { return zeronull.Timestamptz(t) }

// scanEvent reads the columns of one row, and more before them.
func scanEvent(row pgx.Row, more ...any) (*Event, error) {
	var e Event
	var key []byte
	err := row.Scan(append(more, &e.ID, &e.Rev, &e.Offset, &key, &e.State, &e.Attempts, (*zeronull.Timestamptz)(&e.Due), &e.Class, &e.Reason,
		(*zeronull.Timestamptz)(&e.FirstFailed), (*zeronull.Timestamptz)(&e.LastFailed), &e.Copy.Topic, &e.Copy.Offset)...)
	if err != nil {
		return nil, err
	}
	e.Key = string(key)
	return &e, nil
}

// Load reads what is parked of the given partitions.
func Load(ctx context.Context, db *pgxpool.Pool, consumer string, generation int, tps []eventlog.TopicPartition) (map[eventlog.TopicPartition][]*Event, error) {
	topics, partitions := make([]string, len(tps)), make([]int32, len(tps))
	for i, tp := range tps {
		topics[i], partitions[i] = tp.Topic, tp.Partition
	}
	return byPartition(db.Query(ctx, `SELECT topic, partition, `+columns+` FROM tomato.parked
		WHERE consumer = $1 AND generation = $2 AND (topic, partition) IN (SELECT * FROM unnest($3::text[], $4::int[]))`,
		consumer, generation, topics, partitions))
}

// LoadChanged reads the rows of a consumer that an operator may have changed:
// those that were discarded or replayed.
func LoadChanged(ctx context.Context, db *pgxpool.Pool, consumer string, generation int) (map[eventlog.TopicPartition][]*Event, error) {
	return byPartition(db.Query(ctx, `SELECT topic, partition, `+columns+` FROM tomato.parked
		WHERE consumer = $1 AND generation = $2 AND (state = 'discarded' OR state = 'retry' AND attempt = 0)`, consumer, generation))
}

func byPartition(rows pgx.Rows, err error) (map[eventlog.TopicPartition][]*Event, error) {
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[eventlog.TopicPartition][]*Event{}
	for rows.Next() {
		var tp eventlog.TopicPartition
		e, err := scanEvent(rows, &tp.Topic, &tp.Partition)
		if err != nil {
			return nil, err
		}
		out[tp] = append(out[tp], e)
	}
	return out, rows.Err()
}

// LoadOne reads the row with this id. It returns nil if there is none.
func LoadOne(ctx context.Context, db *pgxpool.Pool, id int64) (*Event, error) {
	e, err := scanEvent(db.QueryRow(ctx, `SELECT `+columns+` FROM tomato.parked WHERE id = $1`, id))
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	return e, err
}

// Insert writes the rows of events that have none, and sets their ID and Rev.
// Writing a row again, after a commit whose answer was lost, changes nothing.
func Insert(ctx context.Context, tx pgx.Tx, source Source, events []*Event) error {
	if len(events) == 0 {
		return nil
	}
	var b pgx.Batch
	for _, e := range events {
		var id, typ string
		if e.Record != nil {
			for _, h := range e.Record.Headers {
				switch h.Key {
				case eventlog.HeaderID:
					id = plainText(string(h.Value[:min(len(h.Value), eventlog.MaxIDBytes)]))
				case eventlog.HeaderType:
					typ = plainText(string(h.Value[:min(len(h.Value), eventlog.MaxTypeBytes)]))
				}
			}
		}
		b.Queue(`INSERT INTO tomato.parked AS p (consumer, generation, topic, partition, source_offset, source_time, key, event_id, event_type,
				state, attempt, due_at, class, error, first_failed_at, last_failed_at, copy_topic, copy_offset)
			VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13,$14,$15,$16,$17,$18)
			ON CONFLICT (consumer, generation, topic, partition, source_offset) DO UPDATE SET rev = p.rev
			RETURNING id, rev`,
			source.Consumer, source.Generation, source.Topic, source.Partition, e.Offset, e.Record.Timestamp, []byte(e.Key), id, typ,
			e.State, e.Attempts, orNull(e.Due), e.Class, e.Reason, orNull(e.FirstFailed), orNull(e.LastFailed), e.Copy.Topic, e.Copy.Offset).
			QueryRow(func(row pgx.Row) error { return row.Scan(&e.ID, &e.Rev) })
	}
	return tx.SendBatch(ctx, &b).Close()
}

// Update writes e over its row if the row is still at e.Rev, and raises e.Rev. It
// reports whether the row was still at e.Rev; if not, an operator has changed it.
func (e *Event) Update(ctx context.Context, tx pgx.Tx) (bool, error) {
	tag, err := tx.Exec(ctx, `UPDATE tomato.parked SET rev = rev + 1, state = $3, attempt = $4, due_at = $5, class = $6, error = $7,
			first_failed_at = $8, last_failed_at = $9, copy_topic = $10, copy_offset = $11
		WHERE id = $1 AND rev = $2`,
		e.ID, e.Rev, e.State, e.Attempts, orNull(e.Due), e.Class, e.Reason, orNull(e.FirstFailed), orNull(e.LastFailed), e.Copy.Topic, e.Copy.Offset)
	if err != nil || tag.RowsAffected() != 1 {
		return false, err
	}
	e.Rev++
	return true, nil
}

// Folded is the class of a discarded event whose effect the rows of its read model have
// already. Its row is only to be deleted.
const Folded = "folded"

// Discard marks the row of one event as discarded in all generations of a read model, and
// returns the generations that have it parked. The consumer of each gives the event to its
// handler once more, which passes over it.
func Discard(ctx context.Context, tx pgx.Tx, model string, at eventlog.Position) (generations map[int]bool, err error) {
	rows, err := tx.Query(ctx, `UPDATE tomato.parked SET state = CASE WHEN state = 'waiting' THEN state ELSE 'discarded' END,
			rev = rev + (state <> 'waiting')::int, due_at = CASE WHEN state = 'waiting' THEN due_at END
		WHERE consumer = $1 AND generation > 0 AND topic = $2 AND partition = $3 AND source_offset = $4 RETURNING generation`,
		model, at.Topic, at.Partition, at.Offset)
	if err != nil {
		return nil, err
	}
	generations = map[int]bool{}
	var g int
	_, err = pgx.ForEachRow(rows, []any{&g}, func() error { generations[g] = true; return nil })
	return generations, err
}

// Fold marks the rows of a key before the offset next as discarded, because the rows of
// the read model have their effect. It returns how many there are. The worker of the
// partition deletes them.
func Fold(ctx context.Context, tx pgx.Tx, source Source, key string, next int64) (rows int, err error) {
	tag, err := tx.Exec(ctx, `UPDATE tomato.parked SET state = 'discarded', class = $7, rev = rev + 1, due_at = NULL
		WHERE consumer = $1 AND generation = $2 AND topic = $3 AND partition = $4 AND key = $5 AND source_offset < $6`,
		source.Consumer, source.Generation, source.Topic, source.Partition, []byte(key), next, Folded)
	return int(tag.RowsAffected()), err
}

// Delete deletes the row of e if it is still at e.Rev, and reports whether it was.
func (e *Event) Delete(ctx context.Context, tx pgx.Tx) (bool, error) {
	tag, err := tx.Exec(ctx, `DELETE FROM tomato.parked WHERE id = $1 AND rev = $2`, e.ID, e.Rev)
	return err == nil && tag.RowsAffected() == 1, err
}
