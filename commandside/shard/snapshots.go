package shard

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"tomato/domain/order"
	"tomato/domain/payment"
	"tomato/domain/restaurant"
	"tomato/domain/rider"
	"tomato/eventlog"
)

// Snapshots make a take-over short: it loads the aggregates as they were, and
// reads the logs from there. They are derived; losing them loses nothing but time.
//
// Topic shard-snapshots, partition p, is written by one owner of shard p at a
// time, in transactions of the id snapshots-p. Compaction keeps the last record
// of a key, so a deposed owner must not write behind its successor: a take-over
// begins with InitProducerID, which fences it, then reads, then claims. It is
// never done again under the same claim: that would fence a successor that has
// read already. So whatever goes wrong in a transaction ends the claim: the
// shard is taken over anew.
//
// A record is keyed <topic>/<id> and holds the aggregate's state as JSON, with
// the idempotency keys used on it in a header; a tombstone says that it has left.
// "checkpoint" says how far the logs were folded in. Confirmed state only: the
// loop lets its appends be acknowledged first, for some milliseconds.

// foldVersion changes when states, or what Evolve makes of events, do: older
// snapshots are ignored then, and the logs are read from their beginning.
const foldVersion = 1

const (
	checkpointKey = "checkpoint"
	markKey       = "mark" // a take-over's own record: what stands before it is all there is
	hdrFold       = "fold"
	hdrKeys       = "keys"
	hdrUnread     = "unread" // the mark of an aggregate that the build which wrote it could not read
	hdrDue        = "due"    // Unix milliseconds: the order's next deadline
	hdrRetire     = "retire" // Unix milliseconds: when a closed one is to shrink, or to leave

	snapshotEvery = 10 * time.Second      // default: after the end of one, until the next
	quiesceLeast  = 50 * time.Millisecond // for appends in flight, before a snapshot is put off
	quiesceMost   = time.Second           // after it was put off some times
	quiesceAgain  = time.Second           // by so much
	commitLimit   = 30 * time.Second      // for one transaction, over which the claim ends
	leaveLimit    = 2 * time.Second       // for the last one when the shard is handed over
	snapshotChunk = 1000                  // records of one transaction
	snapshotWorth = 5000                  // records, after which a snapshot is worth it though no state has changed, or early
	snapshotBytes = 8 << 20               // of one record at most: a restaurant with its whole menu; as the topic takes
	snapshotStill = 15 * time.Second      // without a record before the mark of a take-over, after which snapshots are done without
	keysSaved     = 20_000                // idempotency keys of one aggregate, the newest
	readBytes     = 16 << 20              // of one fetch when a shard is opened
)

// recordKey names an aggregate in the topic.
type recordKey struct {
	kind int
	id   string
}

func (k recordKey) String() string { return eventlog.AggregateTopics[k.kind] + "/" + k.id }

func parseRecordKey(key string) (k recordKey, ok bool) {
	topic, id, ok := strings.Cut(key, "/")
	k = recordKey{logOf(topic), id}
	return k, ok && k.kind >= 0
}

// checkpoint is how far a snapshot goes.
type checkpoint struct {
	At   time.Time           `json:"at"`
	Logs map[string]position `json:"logs"` // by topic
	// Kept is how many aggregates the topic has. With fewer it is not believed:
	// somebody has taken one out, or compaction has lost one.
	Kept int `json:"kept"`
	// Types are those of the events that the build which wrote it can read. Where
	// this build does not know one of them, the states may hold what it cannot read,
	// and it reads the logs instead: after a roll-back it must not decide on them.
	Types []string `json:"types"`
}

// readTypes are the types of the events that this build can read.
var readTypes = slices.Concat(order.Types, payment.Types, rider.Types, restaurant.Types)

// keep notes that the aggregate stands in the topic, or no longer does.
func (a *aggregates) keep(kind int, e *entry, is bool) {
	switch bit := uint8(1) << kind; {
	case is && e.kept&bit == 0:
		e.kept |= bit
		a.kept++
	case !is && e.kept&bit != 0:
		e.kept &^= bit
		a.kept--
	}
}

// position is that of a record that counted: of the last one folded in.
type position struct {
	Offset int64 `json:"offset"`
	Term   int64 `json:"term"`
	Seq    int64 `json:"seq"` // 0 of a claim
}

// snapshots is the topic's partition as one claim writes it.
type snapshots struct {
	owner     *Shards
	partition int32
	client    *kgo.Client
}

// openSnapshots fences whoever wrote them before.
func (s *Shards) openSnapshots(ctx context.Context, p int32) (*snapshots, error) {
	client, err := s.Kafka.NewClient(
		kgo.TransactionalID(snapshotsID(p)), kgo.ConcurrentTransactionsBackoff(time.Millisecond),
		kgo.TransactionTimeout(time.Minute), kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0), kgo.ProducerBatchMaxBytes(snapshotBytes),
	)
	if err != nil {
		return nil, err
	}
	if _, _, err := client.ProducerID(ctx); err != nil {
		client.Close()
		return nil, fmt.Errorf("fencing the snapshots of shard %d: %w", p, err)
	}
	return &snapshots{s, p, client}, nil
}

func (w *snapshots) close() { w.client.Close() }

// load reads what is there: the last record of each key, as of a mark of its own
// (in a log with transactions and compaction the end is no record).
func (w *snapshots) load(ctx context.Context) (last map[string]*kgo.Record, err error) {
	for range 3 {
		if last, err = w.read(ctx); !errors.Is(err, errHidden) {
			return last, err
		}
		w.owner.Log.Warn("a transaction of snapshots without an end is ended", "partition", w.partition, "err", err)
		if err := w.writeAbortMarker(ctx); err != nil {
			return nil, fmt.Errorf("ending a transaction of the snapshots of shard %d: %w", w.partition, err)
		}
		fresh, err := w.owner.openSnapshots(ctx, w.partition) // the marker was the end of this client's epoch
		if err != nil {
			return nil, err
		}
		w.client.Close()
		w.client = fresh.client
	}
	return nil, err
}

func (w *snapshots) read(ctx context.Context) (map[string]*kgo.Record, error) {
	mark := &kgo.Record{Key: []byte(markKey), Value: []byte(uuid.NewString())}
	if err := w.commit(ctx, []*kgo.Record{mark}); err != nil {
		return nil, fmt.Errorf("marking the snapshots of shard %d: %w", w.partition, err)
	}
	client, err := w.owner.Kafka.NewClient(
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{eventlog.ShardSnapshots: {w.partition: kgo.NewOffset().AtStart()}}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.FetchMaxWait(100*time.Millisecond), kgo.FetchMaxPartitionBytes(readBytes),
	)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	last := map[string]*kgo.Record{}
	before := int64(-1) // offset of the record before
	for {
		pctx, cancel := context.WithTimeout(ctx, snapshotStill)
		fetches := client.PollFetches(pctx)
		cancel()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if pctx.Err() != nil && fetches.NumRecords() == 0 {
			w.owner.Log.Error("the snapshots cannot be read to their end: somebody holds a transaction open on their topic. The logs are read from their beginning",
				"topic", eventlog.ShardSnapshots, "partition", w.partition)
			return map[string]*kgo.Record{}, nil
		}
		for _, fe := range fetches.Errors() {
			return nil, fmt.Errorf("reading the snapshots of shard %d: %w", w.partition, fe.Err)
		}
		for iter := fetches.RecordIter(); !iter.Done(); {
			r := iter.Next()
			key := string(r.Key)
			switch {
			case r.Offset == mark.Offset:
				return last, nil
			case r.Offset > mark.Offset: // such as the marker that commits the mark
				return nil, fmt.Errorf("%w: not at %d, but at %d and %d (control %v)", errHidden, mark.Offset, before, r.Offset, r.Attrs.IsControl())
			case r.Attrs.IsControl() || key == markKey:
			case r.Value == nil && r.Attrs.IsTransactional():
				delete(last, key)
			default: // what no owner has written is kept, too: it may hide what one has
				last[key] = r
			}
			before = r.Offset
		}
	}
}

// errHidden says that what was committed just now cannot be read.
var errHidden = errors.New("the snapshots do not end where they are marked")

// writeAbortMarker aborts a transaction without records. The embedded broker, when
// it was killed in the middle of a transaction, holds it for aborted but writes no
// marker that says so: readers take what follows under this transactional id for
// aborted, too, up to the next marker. It has no records: those would be one
// more transaction for a marker to end. Of Apache Kafka nothing needs it.
// It is written under this take-over's own id and epoch: a successor fences it.
func (w *snapshots) writeAbortMarker(ctx context.Context) error {
	id, epoch, err := w.client.ProducerID(ctx)
	if err != nil {
		return err
	}
	name := snapshotsID(w.partition)
	add := kmsg.NewPtrAddPartitionsToTxnRequest()
	add.TransactionalID, add.ProducerID, add.ProducerEpoch = name, id, epoch
	topic := kmsg.NewAddPartitionsToTxnRequestTopic()
	topic.Topic, topic.Partitions = eventlog.ShardSnapshots, []int32{w.partition}
	add.Topics = append(add.Topics, topic)
	added, err := add.RequestWith(ctx, w.client)
	if err != nil {
		return err
	}
	for _, t := range added.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return err
			}
		}
	}
	end := kmsg.NewPtrEndTxnRequest()
	end.TransactionalID, end.ProducerID, end.ProducerEpoch = name, id, epoch
	ended, err := end.RequestWith(ctx, w.client)
	if err == nil {
		err = kerr.ErrorForCode(ended.ErrorCode)
	}
	return err
}

func snapshotsID(p int32) string { return fmt.Sprint("snapshots-", p) }

// commit writes records in one transaction. After an error nothing more may be
// written with this client.
func (w *snapshots) commit(ctx context.Context, records []*kgo.Record) error {
	ctx, cancel := context.WithTimeout(ctx, commitLimit)
	defer cancel()
	if err := w.client.BeginTransaction(); err != nil {
		return err
	}
	for _, r := range records {
		r.Topic, r.Partition = eventlog.ShardSnapshots, w.partition
	}
	if err := w.client.ProduceSync(ctx, records...).FirstErr(); err != nil {
		return err
	}
	w.owner.at(StepSnapshotSent, w.partition)
	return w.client.EndTransaction(ctx, kgo.TryCommit)
}

// restore puts what was loaded into the aggregates and returns how far it goes.
// Where there is no checkpoint, or anything is of another fold, that is nil, the
// aggregates are empty, and what is in the topic and will not be overwritten is
// to be taken out of it. A record outside of a transaction was written by no owner.
func (a *aggregates) restore(last map[string]*kgo.Record, now time.Time) (*checkpoint, error) {
	fits := last[checkpointKey] != nil
	for name, r := range last { // a part of another fold's is no part of this
		_, ok := parseRecordKey(name)
		fits = fits && (!ok && name != checkpointKey || headersOf(r).fold == foldVersion && r.Attrs.IsTransactional())
	}
	if !fits {
		for name := range last {
			if key, ok := parseRecordKey(name); ok {
				a.gone = append(a.gone, key)
			}
		}
		return nil, nil
	}
	at := &checkpoint{}
	if err := json.Unmarshal(last[checkpointKey].Value, at); err != nil {
		return nil, fmt.Errorf("%w: its checkpoint is not readable: %w", errForeignSnapshot, err)
	}
	a.room(len(last) / 2) // an order and its payment are two records
	for _, t := range at.Types {
		if !slices.Contains(readTypes, t) {
			return nil, fmt.Errorf("%w: a build that reads %s has written it", errForeignSnapshot, eventlog.LogText(t))
		}
	}
	n := 0
	for name := range last {
		if _, ok := parseRecordKey(name); ok {
			n++
		}
	}
	if n < at.Kept {
		return nil, fmt.Errorf("%w: it has %d aggregates of %d", errForeignSnapshot, n, at.Kept)
	}
	for name, r := range last {
		key, ok := parseRecordKey(name)
		if !ok {
			continue
		}
		if err := a.restoreOne(key, r, headersOf(r), r.Offset > last[checkpointKey].Offset, now); err != nil {
			return nil, fmt.Errorf("%w: %s is not readable: %w", errForeignSnapshot, name, err)
		}
	}
	slices.SortFunc(a.keys.order, func(x, y keyAge) int { return cmp.Compare(x.at, y.at) })
	return at, nil
}

func (a *aggregates) restoreOne(key recordKey, r *kgo.Record, h savedHeaders, ahead bool, now time.Time) (err error) {
	e := a.held[key.kind][key.id]
	if e == nil {
		e = a.begin(key.kind, key.id)
	}
	if ahead {
		e.ahead |= 1 << key.kind
	}
	a.keep(key.kind, e, true)
	if h.unread != nil {
		mark := &unreadable{}
		if err := json.Unmarshal(h.unread, mark); err != nil {
			return fmt.Errorf("its mark: %w", err)
		}
		if mark.Build != a.build {
			return fmt.Errorf("build %s could not read the %s, and this one may", eventlog.LogText(mark.Build), eventlog.LogText(mark.Type))
		}
		if mark.readable(key.kind) {
			return fmt.Errorf("this build can read the %s that the one which wrote it could not", eventlog.LogText(mark.Type))
		}
		e.setUnread(key.kind, mark)
	}
	switch key.kind {
	case riders:
		err = json.Unmarshal(r.Value, &e.rider)
	case restaurants:
		err = json.Unmarshal(r.Value, &e.restaurant)
	default:
		if e.frozen == nil {
			e.frozen = &frozen{}
		}
		if value := bytes.Clone(r.Value); key.kind == orders { // the record's own is part of a large batch
			e.frozen.order = value
		} else {
			e.frozen.payment = value
		}
	}
	if err != nil {
		return err
	}
	if h.due > 0 {
		a.due.push(time.UnixMilli(h.due), key.id)
	}
	if h.retire > 0 {
		a.closed.push(time.UnixMilli(h.retire), key.id)
	}
	for used := range strings.SplitSeq(h.keys, ",") {
		scope, u, ok := parseKeyUse(used)
		if !ok {
			continue
		}
		u.at, err = strconv.ParseInt(used[strings.LastIndexByte(used, '.')+1:], 10, 64)
		if err == nil && !u.expired(now) {
			a.keys.add(e, scope, u)
		}
	}
	return nil
}

// savedHeaders are a record's.
type savedHeaders struct {
	fold        int64 // -1: none
	due, retire int64
	keys        string
	unread      []byte // the mark; nil: none
}

func headersOf(r *kgo.Record) savedHeaders {
	h := savedHeaders{fold: -1}
	for i := range r.Headers {
		number := func(n *int64) {
			if v, err := strconv.ParseInt(string(r.Headers[i].Value), 10, 64); err == nil {
				*n = v
			}
		}
		switch r.Headers[i].Key {
		case hdrFold:
			number(&h.fold)
		case hdrDue:
			number(&h.due)
		case hdrRetire:
			number(&h.retire)
		case hdrKeys:
			h.keys = string(r.Headers[i].Value)
		case hdrUnread:
			h.unread = r.Headers[i].Value
		}
	}
	return h
}

// snapshotDue begins a snapshot whose time has come: no command is taken until
// nothing is in flight. There is none where nothing has changed.
func (s *shard) snapshotDue(now time.Time) {
	if s.snapshotAt.IsZero() || now.Before(s.snapshotAt) || s.writing != nil {
		return
	}
	s.snapshotAt = time.Time{}
	switch {
	case s.deposed != nil, s.passing.Load(), len(s.agg.unsaved)+len(s.agg.gone) == 0 && s.sinceCut < snapshotWorth:
		s.snapshotAt = now.Add(s.owner.SnapshotEvery)
	case s.unkept != nil:
		s.fail(fmt.Errorf("%w: %w", errSnapshot, s.unkept))
	default:
		s.quiesceBy = now.Add(s.quiesceFor)
	}
}

// quiesced takes the cut of a snapshot that is due once nothing is in flight,
// and lets it be written while the loop goes on.
func (s *shard) quiesced() {
	if s.deposed != nil { // the state has what does not count
		s.quiesceBy = time.Time{}
	}
	if s.quiesceBy.IsZero() {
		return
	}
	now := time.Now()
	switch {
	case s.unacked() == 0:
		c := s.cut(now)
		s.quiesceFor = quiesceLeast
		s.owner.at(StepSnapshotCut, s.partition)
		s.writing = c
		go func() {
			err := s.snapshots.write(context.Background(), c)
			if err == nil {
				s.owner.metrics.snapshotSeconds.Observe(time.Since(now).Seconds())
				s.owner.at(StepSnapshotKept, s.partition)
			}
			s.written <- err
		}()
	case now.Before(s.quiesceBy):
		return
	default: // the broker is slow, and commands go first, but not for ever
		s.owner.metrics.snapshots.WithLabelValues("put_off").Inc()
		s.quiesceFor = min(2*s.quiesceFor, quiesceMost)
		s.snapshotAt = now.Add(quiesceAgain)
	}
	s.quiesceBy = time.Time{}
}

func (s *shard) snapshotWritten(err error) {
	written := s.writing
	s.writing = nil
	if err != nil && s.passing.Load() { // the next owner reads already; this one serves until it claims
		s.unkept, s.snapshotAt = err, time.Now().Add(s.owner.SnapshotEvery)
		return
	}
	if err != nil {
		s.owner.metrics.snapshots.WithLabelValues("failed").Inc()
		s.fail(fmt.Errorf("%w: %w", errSnapshot, err))
		return
	}
	s.owner.metrics.snapshots.WithLabelValues("kept").Inc()
	written.freeze()
	s.savedAt = time.Now().UTC()
	s.snapshotAt = s.savedAt.Add(s.owner.SnapshotEvery)
}

// snapshot is what one is to hold: a cut of the shard's state.
type snapshot struct {
	fresh      bool // what the topic has is not believed: its checkpoint goes first
	changed    []saved
	gone       []recordKey
	checkpoint checkpoint
}

// saved is one aggregate in the cut.
type saved struct {
	key   recordKey
	on    *entry
	state any
	keys  string
	mark  *unreadable
	value []byte // as it was written
}

// cut takes the state as it is. All of it is confirmed: nothing is in flight.
func (s *shard) cut(now time.Time) *snapshot {
	c := &snapshot{fresh: !s.agg.partial && s.savedAt.IsZero(), checkpoint: checkpoint{At: now.UTC(), Logs: map[string]position{}, Types: readTypes}}
	for i := range s.logs {
		l := &s.logs[i]
		c.checkpoint.Logs[l.topic] = position{Offset: l.lastOff, Term: l.rule.Term, Seq: l.rule.Seq}
	}
	agg := s.agg
	for _, e := range agg.unsaved {
		keys := agg.keys.textOf(e)
		for kind, state := range [logCount]any{e.order, e.payment, e.rider, e.restaurant} {
			if e.unsaved&(1<<kind) != 0 {
				s := saved{key: recordKey{kind, e.id}, on: e, state: state, keys: keys, mark: e.unreadOf(kind)}
				if e.version(kind) == 0 { // marked by its first event
					s.state = nil
				}
				c.changed = append(c.changed, s)
				agg.keep(kind, e, true)
			}
		}
		e.unsaved = 0
	}
	for _, k := range s.agg.gone {
		if e := s.agg.held[k.kind][k.id]; e == nil || e.frozen == nil && e.version(k.kind) == 0 && e.unreadOf(k.kind) == nil { // else it is in the cut: all that is held is, the first time
			c.gone = append(c.gone, k)
		}
	}
	c.checkpoint.Kept = agg.kept
	agg.unsaved, agg.gone, s.sinceCut = nil, nil, 0
	return c
}

// freeze lets closed orders and their payments be text, as the snapshot has them,
// where nothing has changed since: hardly anybody asks for them any more, and most
// of what is held is closed. Text is smaller, and the collector does not look into
// it.
func (c *snapshot) freeze() {
	for i := range c.changed {
		s := &c.changed[i]
		e := s.on
		if e.unsaved != 0 || e.unread != nil {
			continue
		}
		f := e.frozen
		if f == nil {
			f = &frozen{}
		}
		switch {
		case s.key.kind == orders && s.state == any(e.order) && e.order.Status.Closed():
			f.order, e.order = s.value, nil
		case s.key.kind == payments && s.state == any(e.payment) && (f.order != nil || e.order != nil && e.order.Status.Closed()):
			f.payment, e.payment = s.value, nil
		default:
			continue
		}
		e.frozen = f
	}
}

// textOf is the header that keeps the keys used on e.
func (m *keyMemory) textOf(e *entry) string {
	var b strings.Builder
	for _, scope := range e.keys[max(0, len(e.keys)-keysSaved):] {
		u := m.known[scope]
		if u.on != e { // forgotten, or used again for another
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%s.%d", u.text(scope), u.at)
	}
	return b.String()
}

// write writes a cut. The checkpoint comes last: states that are ahead of it do
// no harm, a replay skips the events that they have.
func (w *snapshots) write(ctx context.Context, c *snapshot) error {
	var records []*kgo.Record
	if c.fresh { // else a part of this one could be believed with the old checkpoint
		records = append(records, &kgo.Record{Key: []byte(checkpointKey)})
	}
	for i := range c.changed {
		r, err := c.changed[i].record(w.owner.ArchiveAfter)
		if err != nil {
			return err
		}
		if records = append(records, r); len(records) >= snapshotChunk {
			if err := w.commit(ctx, records); err != nil {
				return err
			}
			records = nil
		}
	}
	for _, k := range c.gone {
		records = append(records, &kgo.Record{Key: []byte(k.String())})
	}
	value, err := json.Marshal(c.checkpoint)
	if err != nil {
		return err
	}
	return w.commit(ctx, append(records, snapshotRecord(checkpointKey, value)))
}

func snapshotRecord(key string, value []byte) *kgo.Record {
	return &kgo.Record{Key: []byte(key), Value: value, Headers: []kgo.RecordHeader{{Key: hdrFold, Value: []byte(strconv.Itoa(foldVersion))}}}
}

// record is the aggregate as it stands in the topic; its text stays in value.
func (s *saved) record(archiveAfter time.Duration) (r *kgo.Record, err error) {
	if s.value, err = encode(nil, s.state); err != nil {
		return nil, err
	}
	r = snapshotRecord(s.key.String(), s.value)
	header := func(key string, value []byte) {
		r.Headers = append(r.Headers, kgo.RecordHeader{Key: key, Value: value})
	}
	if s.keys != "" {
		header(hdrKeys, []byte(s.keys))
	}
	if s.mark != nil {
		header(hdrUnread, s.mark.header())
		return r, nil // no deadline of it fires
	}
	if o, ok := s.state.(*order.State); ok {
		at := func(key string, t time.Time) {
			if !t.IsZero() {
				header(key, strconv.AppendInt(nil, t.UnixMilli(), 10))
			}
		}
		due, _ := o.NextDeadline()
		at(hdrDue, due)
		at(hdrRetire, retireAt(o, archiveAfter))
	}
	return r, nil
}

// errSnapshot ends a claim under which snapshots cannot be written any more.
var errSnapshot = errors.New("the snapshot could not be written")
