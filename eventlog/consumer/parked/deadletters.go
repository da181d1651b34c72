package parked

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"tomato/eventlog"
)

// DeadLetters are the operators' tools for events that consumers could not
// handle. They only change rows of tomato.parked. The consumer that parked an
// event notices the change within about a second, or when it runs again. All
// changes are recorded in tomato.dead_letter_actions. Safe for concurrent use.
type DeadLetters struct {
	DB    *pgxpool.Pool
	Kafka eventlog.Config // to show the record of a dead letter
	// Skip makes a read model skip an event for good. Discard calls it for a dead letter of
	// a read model, and fails without it: the event would come back with the next rebuild.
	Skip func(ctx context.Context, model string, at eventlog.Position, reason, who string) error
}

// ConfirmAbove is how many dead letters may be replayed without confirming their
// number.
const ConfirmAbove = 100

// The bounds of a replay's rate, in dead letters per second. With the slowest, the
// last of a hundred is due after some minutes, while somebody still remembers
// that it was replayed.
const (
	MinReplayRate = 0.1
	MaxReplayRate = 100_000
)

// Errors of DeadLetters that are mistakes of the caller.
var (
	ErrNoDeadLetter  = errors.New("no such dead letter")
	ErrInvalidCursor = errors.New("not a cursor that this service made")
	ErrReplayRate    = fmt.Errorf("the rate of a replay is %v to %v per second, or 0: all at once", MinReplayRate, MaxReplayRate)
	ErrNoReason      = errors.New("a dead letter is not discarded without a reason: it is all that is left to tell why")
	ErrSelection     = errors.New("select dead letters of one consumer by exactly one of ids, key, class and all")
)

// ConfirmError says that a replay of Matched dead letters needs a confirmation.
type ConfirmError struct{ Matched int }

func (e *ConfirmError) Error() string {
	return fmt.Sprintf("%d dead letters match; confirm by that count", e.Matched)
}

// ParkedRecord is a parked event as operators see it. A dead letter is one whose
// state is "dead".
type ParkedRecord struct {
	ID            int64     `json:"id"`
	Consumer      string    `json:"consumer"`
	Generation    int       `json:"generation,omitempty"`
	State         string    `json:"state"` // List returns "dead" alone; Get also "retry", "waiting" and "discarded"
	Topic         string    `json:"topic"`
	Partition     int32     `json:"partition"`
	Offset        int64     `json:"offset"`
	Timestamp     time.Time `json:"timestamp"` // of the source record
	Key           string    `json:"key"`
	EventID       string    `json:"eventId,omitempty"`
	EventType     string    `json:"eventType,omitempty"`
	Attempt       int       `json:"attempt"` // failed attempts since it was parked or replayed
	Class         string    `json:"class,omitempty"`
	Error         string    `json:"error,omitempty"`
	FirstFailedAt time.Time `json:"firstFailedAt,omitzero"`
	LastFailedAt  time.Time `json:"lastFailedAt,omitzero"`
	DueAt         time.Time `json:"dueAt,omitzero"` // of state retry
	Replays       int       `json:"replays"`
	QueuedBehind  int       `json:"queuedBehind"` // later events of the key that wait for it

	// The following are of the record. Only Get returns them, if the record can
	// still be read.
	Headers map[string]string `json:"headers,omitempty"`
	Data    json.RawMessage   `json:"data,omitempty"` // the value; a JSON string if the value is not JSON
}

const deadLetterSelect = `SELECT p.id, p.consumer, p.generation, p.state, p.topic, p.partition, p.source_offset, p.source_time, p.key,
	p.event_id, p.event_type, p.attempt, p.class, p.error, p.first_failed_at, p.last_failed_at, p.due_at, p.replays, p.copy_topic, p.copy_offset,
	(SELECT count(*) FROM tomato.parked q WHERE q.consumer = p.consumer AND q.generation = p.generation AND q.topic = p.topic
	 AND q.partition = p.partition AND q.key = p.key AND q.source_offset > p.source_offset) FROM tomato.parked p `

func scanParkedRecord(row pgx.Row) (ParkedRecord, CopyAt, error) {
	var d ParkedRecord
	var at CopyAt
	var key []byte
	var first, last, due *time.Time
	err := row.Scan(&d.ID, &d.Consumer, &d.Generation, &d.State, &d.Topic, &d.Partition, &d.Offset, &d.Timestamp, &key,
		&d.EventID, &d.EventType, &d.Attempt, &d.Class, &d.Error, &first, &last, &due, &d.Replays, &at.Topic, &at.Offset, &d.QueuedBehind)
	d.Key = string(key)
	d.Timestamp = d.Timestamp.UTC()
	for to, from := range map[*time.Time]*time.Time{&d.FirstFailedAt: first, &d.LastFailedAt: last, &d.DueAt: due} {
		if from != nil {
			*to = from.UTC()
		}
	}
	return d, at, err
}

// List returns dead letters, oldest first, of one consumer or, if consumer is "",
// of all. next is the cursor of the following page, or "" on the last page. limit
// must be positive. It fails with ErrInvalidCursor or an error of Postgres.
func (l *DeadLetters) List(ctx context.Context, consumer string, limit int, cursor string) (items []ParkedRecord, next string, err error) {
	after := int64(0)
	if cursor != "" {
		b, err := base64.RawURLEncoding.DecodeString(cursor)
		if err == nil {
			after, err = strconv.ParseInt(string(b), 10, 64)
		}
		if err != nil {
			return nil, "", ErrInvalidCursor
		}
	}
	rows, err := l.DB.Query(ctx, deadLetterSelect+`WHERE p.state = 'dead' AND ($1 = '' OR p.consumer = $1) AND p.id > $2 ORDER BY p.id LIMIT $3`,
		consumer, after, limit+1)
	if err != nil {
		return nil, "", fmt.Errorf("list dead letters: %w", err)
	}
	items, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (ParkedRecord, error) {
		d, _, err := scanParkedRecord(row)
		return d, err
	})
	if err != nil {
		return nil, "", fmt.Errorf("list dead letters: %w", err)
	}
	if len(items) > limit {
		items = items[:limit]
		next = base64.RawURLEncoding.EncodeToString(strconv.AppendInt(nil, items[limit-1].ID, 10))
	}
	return items, next, nil
}

// Get returns one parked event, whatever its state, with the headers and data of
// its record if that can be read from Kafka. It fails with ErrNoDeadLetter if
// there is no such event.
func (l *DeadLetters) Get(ctx context.Context, id int64) (ParkedRecord, error) {
	d, at, err := scanParkedRecord(l.DB.QueryRow(ctx, deadLetterSelect+`WHERE p.id = $1`, id))
	if errors.Is(err, pgx.ErrNoRows) {
		return d, ErrNoDeadLetter
	}
	if err != nil {
		return d, fmt.Errorf("dead letter %d: %w", id, err)
	}
	rec, err := ReadRecord(ctx, l.Kafka, eventlog.TopicPartition{Topic: d.Topic, Partition: d.Partition}, d.Offset, at, nil)
	if err != nil {
		return d, ctx.Err() // the row is worth showing without its record
	}
	d.Headers = make(map[string]string, len(rec.Headers))
	for _, h := range rec.Headers {
		d.Headers[h.Key] = plainText(string(h.Value))
	}
	if json.Valid(rec.Value) && utf8.Valid(rec.Value) {
		d.Data = rec.Value
	} else if d.Data, err = json.Marshal(plainText(string(rec.Value))); err != nil {
		return d, err
	}
	return d, nil
}

// ReplayRequest selects the dead letters of one consumer, by exactly one of
// IDs, Key, Class and All.
type ReplayRequest struct {
	Consumer string  `json:"consumer"`
	IDs      []int64 `json:"ids,omitempty"`
	Key      string  `json:"key,omitempty"`
	Class    string  `json:"class,omitempty"`
	All      bool    `json:"all,omitempty"`

	DryRun        bool    `json:"-"`
	RatePerSecond float64 `json:"ratePerSecond,omitempty"` // 0: all at once
	ConfirmCount  int     `json:"-"`                       // must be the number of matches if that is above ConfirmAbove
	Who           string  `json:"-"`                       // is recorded
}

// ReplayResult is how many dead letters were selected, and how many of them their
// consumer will try again.
type ReplayResult struct {
	Matched  int `json:"matched"`
	Replayed int `json:"replayed"`
}

// Replay makes the consumer try the selected dead letters again, each with all of
// its attempts. Only the first parked event of a key can be a dead letter, so the
// order of the key is kept: later events follow when it is done. Replay fails with
// ErrSelection, ErrReplayRate, a *ConfirmError or an error of Postgres.
func (l *DeadLetters) Replay(ctx context.Context, r ReplayRequest) (ReplayResult, error) {
	selectors := 0
	for _, set := range []bool{len(r.IDs) > 0, r.Key != "", r.Class != "", r.All} {
		if set {
			selectors++
		}
	}
	if selectors != 1 || r.Consumer == "" {
		return ReplayResult{}, ErrSelection
	}
	if rate := r.RatePerSecond; rate != 0 && !(rate >= MinReplayRate && rate <= MaxReplayRate) { // this order of comparisons also refuses NaN
		return ReplayResult{}, ErrReplayRate
	}
	var res ReplayResult
	err := pgx.BeginFunc(ctx, l.DB, func(tx pgx.Tx) error {
		res = ReplayResult{}
		letters, err := l.lock(ctx, tx, `consumer = $1 AND ($2::bigint[] IS NULL OR id = ANY($2)) AND ($3 = ''::bytea OR key = $3) AND ($4 = '' OR class = $4)`,
			r.Consumer, r.IDs, []byte(r.Key), r.Class)
		if err != nil {
			return err
		}
		res.Matched = len(letters)
		switch {
		case r.DryRun || res.Matched == 0:
			return nil
		case res.Matched > ConfirmAbove && r.ConfirmCount != res.Matched:
			return &ConfirmError{res.Matched}
		}
		ids, delays := make([]int64, len(letters)), make([]float64, len(letters))
		for i, d := range letters {
			ids[i] = d.ID
			if r.RatePerSecond > 0 {
				delays[i] = float64(i) / r.RatePerSecond
			}
		}
		tag, err := tx.Exec(ctx, `UPDATE tomato.parked p SET state = 'retry', attempt = 0, rev = rev + 1, replays = replays + 1,
				due_at = clock_timestamp() + make_interval(secs => u.delay)
			FROM unnest($1::bigint[], $2::float8[]) AS u(id, delay) WHERE p.id = u.id`, ids, delays)
		if err != nil {
			return err
		}
		res.Replayed = int(tag.RowsAffected())
		return l.audit(ctx, tx, "replay", r.Consumer, r.Who, "", r, res.Matched, res.Replayed, letters)
	})
	var confirm *ConfirmError
	if err != nil && !errors.As(err, &confirm) {
		err = fmt.Errorf("replay dead letters: %w", err)
	}
	return res, err
}

// Discard gives up one dead letter for good; later events of its key follow. The dead
// letter of a read model is skipped in all generations of it, also in those that a rebuild
// makes later. Discard fails with ErrNoDeadLetter if id is not a dead letter (any more),
// with ErrNoReason if reason is blank, and with the errors of Skip.
func (l *DeadLetters) Discard(ctx context.Context, id int64, reason, who string) error {
	if strings.TrimSpace(reason) == "" {
		return ErrNoReason
	}
	err := pgx.BeginFunc(ctx, l.DB, func(tx pgx.Tx) error {
		letters, err := l.lock(ctx, tx, `id = $1`, id)
		if err != nil {
			return err
		}
		if len(letters) == 0 {
			return ErrNoDeadLetter
		}
		if letters[0].generation > 0 && eventlog.IsAggregate(letters[0].Topic) {
			return errOfReadModel{letters[0]}
		}
		if _, err := tx.Exec(ctx, `UPDATE tomato.parked SET state = 'discarded', rev = rev + 1 WHERE id = $1`, id); err != nil {
			return err
		}
		return l.audit(ctx, tx, "discard", letters[0].consumer, who, reason, map[string]int64{"id": id}, 1, 1, letters)
	})
	if of := (errOfReadModel{}); errors.As(err, &of) {
		err = l.discardOfReadModel(ctx, of.letter, reason, who)
	}
	if err != nil && !errors.Is(err, ErrNoDeadLetter) {
		err = fmt.Errorf("discard dead letter %d: %w", id, err)
	}
	return err
}

// errOfReadModel says that a dead letter is one of a read model.
type errOfReadModel struct{ letter lockedLetter }

func (errOfReadModel) Error() string { return "it is a dead letter of a read model" }

// discardOfReadModel skips the event of a dead letter. To skip it twice changes nothing.
func (l *DeadLetters) discardOfReadModel(ctx context.Context, d lockedLetter, reason, who string) error {
	if l.Skip == nil {
		return errOfReadModel{}
	}
	at := eventlog.Position{TopicPartition: eventlog.TopicPartition{Topic: d.Topic, Partition: d.Partition}, Offset: d.Offset}
	if err := l.Skip(ctx, d.consumer, at, reason, plainText(who)); err != nil {
		return err
	}
	return pgx.BeginFunc(ctx, l.DB, func(tx pgx.Tx) error {
		return l.audit(ctx, tx, "discard", d.consumer, who, reason, map[string]int64{"id": d.ID}, 1, 1, []lockedLetter{d})
	})
}

// lockedLetter is what is recorded of a dead letter, whose row may be deleted.
type lockedLetter struct {
	ID         int64  `json:"id"`
	Topic      string `json:"topic"`
	Partition  int32  `json:"partition"`
	Offset     int64  `json:"offset"`
	Class      string `json:"class"`
	consumer   string
	generation int
}

// lock selects dead letters and locks their rows in source order. Concurrent calls
// therefore neither deadlock nor replay a dead letter twice.
func (l *DeadLetters) lock(ctx context.Context, tx pgx.Tx, where string, args ...any) ([]lockedLetter, error) {
	rows, err := tx.Query(ctx, `SELECT id, topic, partition, source_offset, class, consumer, generation FROM tomato.parked
		WHERE state = 'dead' AND `+where+` ORDER BY source_time, topic, partition, source_offset, id FOR UPDATE`, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (d lockedLetter, err error) {
		err = row.Scan(&d.ID, &d.Topic, &d.Partition, &d.Offset, &d.Class, &d.consumer, &d.generation)
		return d, err
	})
}

func (l *DeadLetters) audit(ctx context.Context, tx pgx.Tx, action, consumer, who, reason string, selection any, matched, changed int, letters []lockedLetter) error {
	_, err := tx.Exec(ctx, `INSERT INTO tomato.dead_letter_actions (who, action, consumer, selection, reason, matched, changed, letters)
		VALUES ($1,$2,$3,$4,$5,$6,$7,$8)`, plainText(who), action, consumer, selection, plainText(reason), matched, changed, letters)
	return err
}
