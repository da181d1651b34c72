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
	hdrDue        = "due"    // Unix milliseconds: the order's next deadline
	hdrClosed     = "closed" // Unix milliseconds: when it closed

	snapshotEvery = 10 * time.Second      // default: after the end of one, until the next
	quiesceLimit  = 50 * time.Millisecond // for appends in flight, before a snapshot is put off
	quiesceAgain  = time.Second           // by so much
	commitLimit   = 30 * time.Second      // for one transaction, over which the claim ends
	leaveLimit    = 2 * time.Second       // for the last one when the shard is handed over
	snapshotChunk = 5000                  // records of one transaction
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
		kgo.RecordPartitioner(kgo.ManualPartitioner()), kgo.ProducerLinger(0),
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
func (w *snapshots) load(ctx context.Context) (map[string]*kgo.Record, error) {
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
	for {
		fetches := client.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return nil, err
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
				return nil, errors.Join(errHidden, w.owner.writeAbortMarker(ctx, w.partition))
			case r.Attrs.IsControl() || key == markKey:
			case r.Value == nil:
				delete(last, key)
			default:
				last[key] = r
			}
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
func (s *Shards) writeAbortMarker(ctx context.Context, p int32) error {
	s.mu.Lock()
	client := s.producer
	s.mu.Unlock()
	id := snapshotsID(p)
	begin := kmsg.NewPtrInitProducerIDRequest()
	begin.TransactionalID, begin.TransactionTimeoutMillis = &id, int32(time.Minute.Milliseconds())
	begin.ProducerID, begin.ProducerEpoch = -1, -1
	begun, err := begin.RequestWith(ctx, client)
	if err == nil {
		err = kerr.ErrorForCode(begun.ErrorCode)
	}
	if err != nil {
		return err
	}
	add := kmsg.NewPtrAddPartitionsToTxnRequest()
	add.TransactionalID, add.ProducerID, add.ProducerEpoch = id, begun.ProducerID, begun.ProducerEpoch
	topic := kmsg.NewAddPartitionsToTxnRequestTopic()
	topic.Topic, topic.Partitions = eventlog.ShardSnapshots, []int32{p}
	add.Topics = append(add.Topics, topic)
	if _, err := add.RequestWith(ctx, client); err != nil {
		return err
	}
	end := kmsg.NewPtrEndTxnRequest()
	end.TransactionalID, end.ProducerID, end.ProducerEpoch = id, begun.ProducerID, begun.ProducerEpoch
	ended, err := end.RequestWith(ctx, client)
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
// Where it cannot be used (there is none, or of another fold), the checkpoint is
// nil and the aggregates are empty; what is in the topic and will not be
// overwritten is then to be taken out.
func (a *aggregates) restore(last map[string]*kgo.Record, now time.Time) (*checkpoint, error) {
	var at *checkpoint
	if r := last[checkpointKey]; r != nil && headersOf(r).fold == foldVersion {
		at = &checkpoint{}
		if err := json.Unmarshal(r.Value, at); err != nil {
			return nil, fmt.Errorf("the checkpoint of the snapshots is not readable: %w", err)
		}
	}
	if at != nil {
		a.room(len(last) / 2) // an order and its payment are two records
	}
	for name, r := range last {
		key, ok := parseRecordKey(name)
		h := headersOf(r)
		switch {
		case !ok:
		case at == nil || h.fold != foldVersion:
			a.gone = append(a.gone, key)
		default:
			if err := a.restoreOne(key, r, h, now); err != nil {
				return nil, fmt.Errorf("the snapshot of %s is not readable: %w", name, err)
			}
		}
	}
	slices.SortFunc(a.keys.order, func(x, y keyScope) int { return cmp.Compare(a.keys.known[x].at, a.keys.known[y].at) })
	return at, nil
}

func (a *aggregates) restoreOne(key recordKey, r *kgo.Record, h savedHeaders, now time.Time) (err error) {
	e := a.held[key.kind][key.id]
	if e == nil {
		e = a.begin(key.kind, key.id)
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
	if h.closed > 0 {
		a.closed.push(time.UnixMilli(h.closed).Add(closedFor), key.id)
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
	due, closed int64
	keys        string
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
		case hdrClosed:
			number(&h.closed)
		case hdrKeys:
			h.keys = string(r.Headers[i].Value)
		}
	}
	return h
}

// snapshot is what one is to hold: a cut of the shard's state.
type snapshot struct {
	changed    []saved
	gone       []recordKey
	checkpoint checkpoint
}

// saved is one aggregate in the cut.
type saved struct {
	key   recordKey
	state any
	keys  string
}

// cut takes the state as it is. All of it is confirmed: nothing is in flight.
func (s *shard) cut(now time.Time) *snapshot {
	c := &snapshot{checkpoint: checkpoint{At: now.UTC(), Logs: map[string]position{}}}
	for i := range s.logs {
		l := &s.logs[i]
		c.checkpoint.Logs[l.topic] = position{Offset: l.lastOff, Term: l.rule.Term, Seq: l.rule.Seq}
	}
	for _, e := range s.agg.unsaved {
		keys := s.agg.keys.textOf(e)
		for kind, state := range [logCount]any{e.order, e.payment, e.rider, e.restaurant} {
			if e.unsaved&(1<<kind) != 0 {
				c.changed = append(c.changed, saved{recordKey{kind, e.id}, state, keys})
			}
		}
		e.unsaved = 0
	}
	for _, k := range s.agg.gone {
		if e := s.agg.held[k.kind][k.id]; e == nil || e.frozen == nil && e.version(k.kind) == 0 { // else it is in the cut: all that is held is, the first time
			c.gone = append(c.gone, k)
		}
	}
	s.agg.unsaved, s.agg.gone = nil, nil
	return c
}

// textOf is the header that keeps the keys used on e.
func (m *keyMemory) textOf(e *entry) string {
	var b strings.Builder
	for _, scope := range e.keys {
		u, ok := m.known[scope]
		if !ok {
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
	fold := kgo.RecordHeader{Key: hdrFold, Value: []byte(strconv.Itoa(foldVersion))}
	record := func(key, keys string, value []byte) *kgo.Record {
		r := &kgo.Record{Key: []byte(key), Value: value, Headers: []kgo.RecordHeader{fold}}
		if keys != "" {
			r.Headers = append(r.Headers, kgo.RecordHeader{Key: hdrKeys, Value: []byte(keys)})
		}
		return r
	}
	var records []*kgo.Record
	for _, s := range c.changed {
		value, err := json.Marshal(s.state)
		if err != nil {
			return err
		}
		r := record(s.key.String(), s.keys, value)
		if o, ok := s.state.(*order.State); ok {
			at := func(key string, t time.Time) {
				if !t.IsZero() {
					r.Headers = append(r.Headers, kgo.RecordHeader{Key: key, Value: strconv.AppendInt(nil, t.UnixMilli(), 10)})
				}
			}
			due, _ := o.NextDeadline()
			at(hdrDue, due)
			at(hdrClosed, o.ClosedAt)
		}
		if records = append(records, r); len(records) == snapshotChunk {
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
	return w.commit(ctx, append(records, record(checkpointKey, "", value)))
}

// errSnapshot ends a claim under which snapshots cannot be written any more.
var errSnapshot = errors.New("the snapshot could not be written")
