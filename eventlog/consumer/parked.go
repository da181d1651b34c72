package consumer

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"tomato/eventlog"
)

// Headers that a record has on a retry or dead letter topic, besides its own.
const (
	hdrSourceTopic     = "source-topic"
	hdrSourcePartition = "source-partition"
	hdrSourceOffset    = "source-offset"
	hdrSourceTimestamp = "source-timestamp" // RFC 3339
	hdrConsumer        = "consumer"
	hdrGeneration      = "generation"
	hdrAttempt         = "attempt" // failed attempts so far
	hdrErrorClass      = "error-class"
	hdrError           = "error"
	hdrFirstFailed     = "first-failed-at" // RFC 3339
	hdrLastFailed      = "last-failed-at"
	hdrValueOmitted    = "value-omitted" // "true": too large to copy; the source has it
)

var parkedHeaders = []string{hdrSourceTopic, hdrSourcePartition, hdrSourceOffset, hdrSourceTimestamp, hdrConsumer,
	hdrGeneration, hdrAttempt, hdrErrorClass, hdrError, hdrFirstFailed, hdrLastFailed, hdrValueOmitted}

const (
	maxErrorText   = 1000     // bytes kept of an error's text
	maxBareHeaders = 64 << 10 // bytes of headers that a copy keeps which is too large
)

// The states of a parked record.
const (
	stateRetry     = "retry"     // to be tried again when due
	stateWaiting   = "waiting"   // behind a parked record of its key
	stateDead      = "dead"      // until an operator replays or discards it
	stateDiscarded = "discarded" // by an operator; its owner takes it away
)

// parkedItem is a row of tomato.parked as its partition's worker has it.
type parkedItem struct {
	id          int64
	rev         int
	offset      int64
	key         string
	state       string
	attempt     int
	due         time.Time
	class, text string
	firstFailed time.Time
	lastFailed  time.Time
	copyTopic   string
	copyOffset  int64

	rec       *kgo.Record // the source record, while memory allows; else it is read again
	awayTries int
}

// runnable says whether the item, as the smallest of its key, may be taken up now.
func (it *parkedItem) runnable(now time.Time) bool {
	switch it.state {
	case stateDead:
		return false
	case stateRetry:
		return !it.due.After(now)
	}
	return !it.due.After(now) // waiting, discarded: due is zero, or a wait after Away
}

// maxHeldBytes bounds the record values that one partition keeps in memory for
// what is parked; the rest is read again from Kafka when its turn comes.
const maxHeldBytes = 4 << 20

// parkedSet is what is parked of one partition. Only the worker's loop changes
// it, and reads it without the lock; the lock is for those who look on (Status)
// and for the held records, which lanes bring in.
type parkedSet struct {
	mu       sync.Mutex
	byKey    map[string][]*parkedItem // ascending offset; the first is the only one that may run
	byOffset map[int64]*parkedItem
	held     int // bytes of rec values
	overKeys int // keys over the key budget
	budget   int // per key
	dirty    bool
	nextDue  time.Time
}

func newParkedSet(items []*parkedItem, keyBudget int) *parkedSet {
	s := &parkedSet{byKey: map[string][]*parkedItem{}, byOffset: map[int64]*parkedItem{}, budget: keyBudget, dirty: true}
	for _, it := range items {
		s.add(it)
	}
	return s
}

func (s *parkedSet) add(it *parkedItem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.byOffset[it.offset]; ok {
		return
	}
	s.byOffset[it.offset] = it
	l := s.byKey[it.key]
	i, _ := slices.BinarySearchFunc(l, it.offset, func(x *parkedItem, o int64) int { return int(x.offset - o) })
	s.byKey[it.key] = slices.Insert(l, i, it)
	if len(l)+1 == s.budget {
		s.overKeys++
	}
	if rec := it.rec; rec != nil {
		it.rec = nil
		s.holdLocked(it, rec)
	}
	s.dirty = true
}

func (s *parkedSet) holdLocked(it *parkedItem, rec *kgo.Record) {
	if it.rec == nil && it.state != stateDead && s.held+len(rec.Value) <= maxHeldBytes {
		it.rec = rec
		s.held += len(rec.Value)
	}
}

// snapshot returns a copy of it for a lane to work on.
func (s *parkedSet) snapshot(it *parkedItem) parkedItem {
	s.mu.Lock()
	defer s.mu.Unlock()
	return *it
}

// hold keeps rec for the item of its offset, if there is one and memory allows.
func (s *parkedSet) hold(rec *kgo.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if it := s.byOffset[rec.Offset]; it != nil {
		s.holdLocked(it, rec)
	}
}

func (s *parkedSet) remove(it *parkedItem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byOffset[it.offset] != it {
		return
	}
	delete(s.byOffset, it.offset)
	l := s.byKey[it.key]
	if len(l) == s.budget {
		s.overKeys--
	}
	l = slices.DeleteFunc(l, func(x *parkedItem) bool { return x == it })
	if len(l) == 0 {
		delete(s.byKey, it.key)
	} else {
		s.byKey[it.key] = l
	}
	if it.rec != nil {
		s.held -= len(it.rec.Value)
	}
	s.dirty = true
}

// set replaces what is known of it by to, but for the held record.
func (s *parkedSet) set(it *parkedItem, to parkedItem) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rec := it.rec
	*it = to
	it.rec = rec
	if it.state == stateDead && rec != nil {
		s.held -= len(rec.Value)
		it.rec = nil
	}
	s.dirty = true
}

// blocks says whether a record of key at offset must queue behind a parked one.
func (s *parkedSet) blocks(key string, offset int64) bool {
	l := s.byKey[key]
	return len(l) > 0 && l[0].offset < offset
}

func (s *parkedSet) has(offset int64) bool { return s.byOffset[offset] != nil }

// behindDead says whether what queues for key waits for an operator.
func (s *parkedSet) behindDead(key string) bool {
	l := s.byKey[key]
	return len(l) > 0 && l[0].state == stateDead
}

// deadKeys are those that wait for an operator.
func (s *parkedSet) deadKeys() (keys []string) {
	for key := range s.byKey {
		if s.behindDead(key) {
			keys = append(keys, key)
		}
	}
	return keys
}

func (s *parkedSet) followers(key string) []*parkedItem {
	if l := s.byKey[key]; len(l) > 1 {
		return slices.Clone(l[1:])
	}
	return nil
}

// due returns the items that may run now, each the smallest of its key.
func (s *parkedSet) due(now time.Time) []*parkedItem {
	if !s.dirty && (s.nextDue.IsZero() || s.nextDue.After(now)) {
		return nil
	}
	var out []*parkedItem
	s.nextDue = time.Time{}
	for _, l := range s.byKey {
		head := l[0]
		if head.runnable(now) {
			out = append(out, head)
		} else if head.state != stateDead && (s.nextDue.IsZero() || head.due.Before(s.nextDue)) {
			s.nextDue = head.due
		}
	}
	// What is due stays due until it changes the set, so ask again only then.
	s.dirty = len(out) > 0
	slices.SortFunc(out, func(a, b *parkedItem) int { return int(a.offset - b.offset) })
	return out
}

type parkedCounts struct {
	retry, waiting, dead, keys int
	oldestDead                 time.Time
}

func (s *parkedSet) counts() parkedCounts {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := parkedCounts{keys: len(s.byKey)}
	for _, it := range s.byOffset {
		switch it.state {
		case stateRetry:
			c.retry++
		case stateWaiting:
			c.waiting++
		case stateDead:
			c.dead++
			if c.oldestDead.IsZero() || it.lastFailed.Before(c.oldestDead) {
				c.oldestDead = it.lastFailed
			}
		}
	}
	return c
}

func (s *parkedSet) len() int { return len(s.byOffset) }

const maxParkedKey = 512 // bytes: an index of Postgres takes no more than some 2,700

// parkedKey is what a record's key is parked under: of a longer one the beginning,
// and a hash by which it stays another key than others that begin so.
func parkedKey(key []byte) string {
	if len(key) <= maxParkedKey {
		return string(key)
	}
	return fmt.Sprintf("%s…%x", key[:64], sha256.Sum256(key))
}

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

// --- failures

// failed writes a failed attempt into it: how often, when it is due again, and
// on which topic its copy goes.
func (it *parkedItem) failed(cause error, now time.Time, delays []time.Duration) (stage string) {
	it.attempt++
	it.class, it.text = errorClass(cause), errorText(cause)
	it.lastFailed = now
	if it.firstFailed.IsZero() {
		it.firstFailed = now
	}
	switch {
	case errors.Is(cause, eventlog.ErrPoison) || it.attempt > len(delays):
		it.state, it.due = stateDead, time.Time{}
		return eventlog.DeadLetter
	case it.attempt == 1:
		it.state, it.due = stateRetry, now.Add(delays[0])
		return eventlog.Retry5s
	default:
		it.state, it.due = stateRetry, now.Add(delays[1])
		return eventlog.Retry30s
	}
}

type panicError struct{ value any }

func (p panicError) Error() string      { return fmt.Sprintf("handler panic: %v", p.value) }
func (p panicError) ErrorClass() string { return "panic" }
func (p panicError) Unwrap() error      { return eventlog.ErrPoison }

type decodeError struct{ err error }

func (d decodeError) Error() string      { return d.err.Error() }
func (d decodeError) ErrorClass() string { return "decode" }
func (d decodeError) Unwrap() error      { return eventlog.ErrPoison }

type goneError struct{}

func (goneError) Error() string {
	return "the record has expired from its topic, and its copies from the retry topics"
}
func (goneError) ErrorClass() string { return "gone" }
func (goneError) Unwrap() error      { return eventlog.ErrPoison }

// errorClass is the word by which operators select failures. An error can name
// its own by a method ErrorClass() string.
func errorClass(err error) string {
	var own interface{ ErrorClass() string }
	var pg *pgconn.PgError
	switch {
	case errors.As(err, &own):
		return own.ErrorClass()
	case errors.As(err, &pg):
		return "pg_" + pg.Code
	case errors.Is(err, eventlog.ErrPoison):
		return "poison"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "transient"
}

func errorText(err error) string {
	s := plainText(err.Error())
	if len(s) > maxErrorText {
		s = s[:maxErrorText]
		for !utf8.ValidString(s) {
			s = s[:len(s)-1]
		}
	}
	return s
}

// plainText makes s fit for a text column, which takes neither NUL nor broken UTF-8.
func plainText(s string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(s, "\uFFFD"), "\x00", "")
}

// isAway says whether err is the absence of a dependency, not a failure of the
// handler. A bare io.EOF is not: decoders return it for bad input.
func isAway(err error) bool {
	if errors.Is(err, eventlog.ErrPoison) {
		return false
	}
	if errors.Is(err, eventlog.ErrUnavailable) {
		return true
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code[:min(2, len(pg.Code))] {
		case "08", "53", "57", "58": // connection, resources, operator, system
			return true
		}
		return pg.Code == "25P03" // idle in transaction: this process was stopped for a while
	}
	var connect *pgconn.ConnectError
	var op *net.OpError
	return errors.As(err, &connect) || errors.As(err, &op) || pgconn.SafeToRetry(err) || pgconn.Timeout(err)
}

// ownWork classifies an error of the runtime's own database work: what did not
// come from the server as an answer is the server's absence. errStale is an
// answer: taken for an absence, a commit whose own answer was lost would be
// repeated for ever, for its rows are changed already.
func ownWork(err error) error {
	var pg *pgconn.PgError
	if err == nil || errors.Is(err, ErrFenced) || errors.Is(err, errStale) || errors.Is(err, eventlog.ErrUnavailable) || errors.As(err, &pg) && !isAway(err) && !isConflict(err) {
		return err
	}
	return eventlog.UnavailableFrom("postgres", err)
}

// isConflict says whether a transaction failed because of another one, so that
// repeating it as it was helps.
func isConflict(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "40001" || pg.Code == "40P01" || pg.Code == "55P03")
}

// --- copies

// parkedCopy is the record that goes to a retry or dead letter topic.
func parkedCopy(src *kgo.Record, tp eventlog.TopicPartition, consumer string, generation int, it *parkedItem, stage string) *kgo.Record {
	h := slices.Clip(src.Headers)
	add := func(k, v string) { h = append(h, kgo.RecordHeader{Key: k, Value: []byte(v)}) }
	add(hdrSourceTopic, tp.Topic)
	add(hdrSourcePartition, strconv.Itoa(int(tp.Partition)))
	add(hdrSourceOffset, strconv.FormatInt(it.offset, 10))
	add(hdrSourceTimestamp, src.Timestamp.UTC().Format(time.RFC3339Nano))
	add(hdrConsumer, consumer)
	add(hdrGeneration, strconv.Itoa(generation))
	add(hdrAttempt, strconv.Itoa(it.attempt))
	add(hdrErrorClass, it.class)
	add(hdrError, it.text)
	if !it.firstFailed.IsZero() {
		add(hdrFirstFailed, it.firstFailed.UTC().Format(time.RFC3339Nano))
		add(hdrLastFailed, it.lastFailed.UTC().Format(time.RFC3339Nano))
	}
	return &kgo.Record{Topic: eventlog.ParkedTopic(tp.Topic, consumer, stage), Partition: tp.Partition, Key: src.Key, Value: src.Value, Headers: h}
}

// originalOf turns a copy back into its source record; nil if it is none of it.
func originalOf(c *kgo.Record, tp eventlog.TopicPartition, offset int64) *kgo.Record {
	r := &kgo.Record{Topic: tp.Topic, Partition: tp.Partition, Offset: offset, Key: c.Key, Value: c.Value, Timestamp: c.Timestamp}
	for _, h := range c.Headers {
		switch h.Key {
		case hdrSourceOffset:
			if string(h.Value) != strconv.FormatInt(offset, 10) {
				return nil
			}
		case hdrSourceTimestamp:
			if t, err := time.Parse(time.RFC3339Nano, string(h.Value)); err == nil {
				r.Timestamp = t
			}
		case hdrValueOmitted:
			return nil
		}
		if !slices.Contains(parkedHeaders, h.Key) {
			r.Headers = append(r.Headers, h)
		}
	}
	return r
}

// produceCopy appends a copy to its topic and returns where it landed. A copy
// that is too large goes without its value, its key, and those of the record's own
// headers that are long: the source has them.
func produceCopy(ctx context.Context, cl *kgo.Client, rec *kgo.Record) (offset int64, err error) {
	type landed struct {
		offset int64
		err    error
	}
	produce := func(rec *kgo.Record) (int64, error) {
		// Not ProduceSync: an idempotent batch that may have landed is not
		// given up when ctx ends, and a stopping worker must not wait for it.
		done := make(chan landed, 1)
		cl.Produce(ctx, rec, func(r *kgo.Record, err error) { done <- landed{r.Offset, err} })
		select {
		case l := <-done:
			return l.offset, l.err
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	offset, err = produce(rec)
	if errors.Is(err, kerr.MessageTooLarge) {
		bare := *rec
		bare.Key, bare.Value = nil, nil
		bare.Headers = []kgo.RecordHeader{{Key: hdrValueOmitted, Value: []byte("true")}}
		size := 0
		for i := len(rec.Headers) - 1; i >= 0; i-- { // from the end, where those of the copy itself are
			h := rec.Headers[i]
			if size += len(h.Key) + len(h.Value); size > maxBareHeaders {
				break
			}
			bare.Headers = append(bare.Headers, h)
		}
		offset, err = produce(&bare)
	}
	return offset, err
}
