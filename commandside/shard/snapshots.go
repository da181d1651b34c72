package shard

import (
	"context"
	"errors"
	"fmt"
	"slices"
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
