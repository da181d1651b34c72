package consumer

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/eventlog"
)

// --- rows

const parkedColumns = `id, rev, source_offset, key, state, attempt, due_at, class, error, first_failed_at, last_failed_at, copy_topic, copy_offset`

func scanParked(row pgx.Row, more ...any) (*parkedItem, error) {
	var it parkedItem
	var key []byte
	var due, first, last *time.Time
	dst := append(more, &it.id, &it.rev, &it.offset, &key, &it.state, &it.attempt, &due, &it.class, &it.text, &first, &last, &it.copyTopic, &it.copyOffset)
	if err := row.Scan(dst...); err != nil {
		return nil, err
	}
	it.key = string(key)
	for p, t := range map[*time.Time]*time.Time{&it.due: due, &it.firstFailed: first, &it.lastFailed: last} {
		if t != nil {
			*p = *t
		}
	}
	return &it, nil
}

// loadParked reads what is parked of the given partitions.
func loadParked(ctx context.Context, db *pgxpool.Pool, consumer string, generation int, tps []eventlog.TopicPartition) (map[eventlog.TopicPartition][]*parkedItem, error) {
	topics, partitions := make([]string, len(tps)), make([]int32, len(tps))
	for i, tp := range tps {
		topics[i], partitions[i] = tp.Topic, tp.Partition
	}
	rows, err := db.Query(ctx, `SELECT topic, partition, `+parkedColumns+` FROM tomato.parked
		WHERE consumer = $1 AND generation = $2 AND (topic, partition) IN (SELECT * FROM unnest($3::text[], $4::int[]))`,
		consumer, generation, topics, partitions)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := map[eventlog.TopicPartition][]*parkedItem{}
	for rows.Next() {
		var tp eventlog.TopicPartition
		it, err := scanParked(rows, &tp.Topic, &tp.Partition)
		if err != nil {
			return nil, err
		}
		out[tp] = append(out[tp], it)
	}
	return out, rows.Err()
}

// insertParked writes rows for items that are new, and sets their id and rev.
// Writing one again, after a commit whose answer was lost, changes nothing.
func insertParked(ctx context.Context, tx pgx.Tx, c *Checkpoint, items []*parkedItem) error {
	if len(items) == 0 {
		return nil
	}
	var b pgx.Batch
	for _, it := range items {
		var id, typ string
		if it.rec != nil {
			for _, h := range it.rec.Headers {
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
			c.Consumer, c.Generation, c.Topic, c.Partition, it.offset, it.rec.Timestamp, []byte(it.key), id, typ,
			it.state, it.attempt, nullTime(it.due), it.class, it.text, nullTime(it.firstFailed), nullTime(it.lastFailed), it.copyTopic, it.copyOffset).
			QueryRow(func(row pgx.Row) error { return row.Scan(&it.id, &it.rev) })
	}
	return tx.SendBatch(ctx, &b).Close()
}

// updateParked writes it over its row if that is still at it.rev, and says
// whether it was; then it.rev is raised.
func updateParked(ctx context.Context, tx pgx.Tx, it *parkedItem) (bool, error) {
	tag, err := tx.Exec(ctx, `UPDATE tomato.parked SET rev = rev + 1, state = $3, attempt = $4, due_at = $5, class = $6, error = $7,
			first_failed_at = $8, last_failed_at = $9, copy_topic = $10, copy_offset = $11
		WHERE id = $1 AND rev = $2`,
		it.id, it.rev, it.state, it.attempt, nullTime(it.due), it.class, it.text, nullTime(it.firstFailed), nullTime(it.lastFailed), it.copyTopic, it.copyOffset)
	if err != nil || tag.RowsAffected() != 1 {
		return false, err
	}
	it.rev++
	return true, nil
}

// deleteParked takes the row away if it is still at it.rev, and says whether it was.
func deleteParked(ctx context.Context, tx pgx.Tx, it *parkedItem) (bool, error) {
	tag, err := tx.Exec(ctx, `DELETE FROM tomato.parked WHERE id = $1 AND rev = $2`, it.id, it.rev)
	return err == nil && tag.RowsAffected() == 1, err
}
