package shard

import (
	"context"
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

// This file owns the topic of snapshots: its keys and headers, the fence, loading all
// records, and transactions.
//
// A snapshot makes a take-over short: the take-over loads the aggregates from it and
// reads the logs only from its positions on. A snapshot is derived from the logs, so
// without it a take-over takes longer and comes to the same state.
//
// Partition p of the topic shard-snapshots is written by one owner of shard p at a
// time, in transactions with the transactional id snapshots-p. Compaction keeps the
// last record of a key, so a deposed owner must not write after its successor. A
// take-over therefore begins with InitProducerID, which fences the previous owner,
// then reads the snapshot and the logs, and then claims. InitProducerID is not called
// again under the same claim, because it would fence a successor that has already read
// the snapshot. For that reason every error in a transaction ends the claim, and the
// shard is taken over anew.
//
// A record has the key <topic>/<id>. Its value is the aggregate's state as JSON, and a
// header has the idempotency keys that were used on the aggregate. A tombstone means
// that the aggregate was evicted. The record with the key "checkpoint" has the
// positions up to which the logs are folded. A snapshot has only confirmed state: the
// loop first waits, for some milliseconds, until its appends are acknowledged.

// readFold are the versions of the folds of this build, by log. A record in the topic
// names the version of the fold that has made it. Snapshots of another version are
// ignored, and the logs are read from their beginning. The versions are derived from
// the source (foldversion.go): they change when the JSON of a state changes, or the
// result of Evolve.
var readFold = [logCount]string{orders: orderFold, payments: paymentFold, riders: riderFold, restaurants: restaurantFold}

const (
	checkpointKey = "checkpoint"
	markKey       = "mark"   // a record that a take-over writes to find the end of the topic
	hdrFold       = "fold"   // the version of the fold that has made the state; see readFold
	hdrKeys       = "keys"   // idempotency keys; see keyMemory.textOf
	hdrUnread     = "unread" // the mark of an aggregate with an event that the writing build could not read
	hdrDue        = "due"    // the order's next deadline, in Unix milliseconds
	hdrRetire     = "retire" // when a closed order is to shrink or to be evicted, in Unix milliseconds

	snapshotEvery = 10 * time.Second      // default time from the end of one snapshot to the next
	quiesceLeast  = 50 * time.Millisecond // first limit for the acknowledgement of appends in flight, after which a snapshot is put off
	quiesceMost   = time.Second           // the same, at most, after a snapshot was put off several times
	quiesceAgain  = time.Second           // how long a snapshot is put off
	commitLimit   = 30 * time.Second      // for one transaction, after which the claim ends
	leaveLimit    = 2 * time.Second       // for the last snapshot when the shard is handed over
	snapshotChunk = 1000                  // records in one transaction
	snapshotWorth = 5000                  // records to read again, above which a snapshot is written although no state has changed, or early
	snapshotBytes = 8 << 20               // largest batch: a restaurant with its whole menu is one record; the topic allows as much
	snapshotStill = 15 * time.Second      // without a record before the mark of a take-over, after which it uses no snapshot
	keysSaved     = 20_000                // idempotency keys of one aggregate that are saved, the newest ones
	readBytes     = 16 << 20              // bytes of one fetch when a snapshot is loaded
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

// checkpointFold is the version that a checkpoint names, because it is of all four logs.
var checkpointFold = strings.Join(readFold[:], ".")

// foldOf returns the version of the fold that a record with this key must name, or "" if
// the key is neither an aggregate's nor the checkpoint's.
func foldOf(key string) string {
	if k, ok := parseRecordKey(key); ok {
		return readFold[k.kind]
	}
	if key == checkpointKey {
		return checkpointFold
	}
	return ""
}

// checkpoint has the positions up to which a snapshot goes.
type checkpoint struct {
	At   time.Time           `json:"at"`
	Logs map[string]position `json:"logs"` // by topic
	// Kept is the number of aggregates in the topic. A snapshot with fewer is not
	// used, because somebody has removed one, or compaction has lost one.
	Kept int `json:"kept"`
	// Types are the event types, and their versions, that the writing build can read. A
	// build that cannot read one of them, after a roll-back, does not use the snapshot, because the states
	// may have the effect of such an event. It reads the logs instead.
	Types []string `json:"types"`
}

// readTypes are the event types that this build can read, and the later versions of their
// data as TYPE/2 and so on.
var readTypes = slices.Concat(order.Forms.Readable(order.Types), payment.Forms.Readable(payment.Types), rider.Forms.Readable(rider.Types), restaurant.Forms.Readable(restaurant.Types))

// canRead reports whether this build knows the version of the event type's data.
func canRead(eventType string, version int) bool {
	if version > 1 {
		eventType += "/" + strconv.Itoa(version)
	}
	return slices.Contains(readTypes, eventType)
}

// noteSaved notes that the topic has the aggregate, or no longer has it if is is false.
func (a *aggregates) noteSaved(kind int, e *entry, is bool) {
	switch bit := uint8(1) << kind; {
	case is && e.kept&bit == 0:
		e.kept |= bit
		a.kept++
	case !is && e.kept&bit != 0:
		e.kept &^= bit
		a.kept--
	}
}

// position is that of the last valid record that was folded.
type position struct {
	Offset int64 `json:"offset"`
	Term   int64 `json:"term"`
	Seq    int64 `json:"seq"` // 0 for a claim
}

// snapshots writes one partition of the topic under one claim, and loads it before. At
// most one goroutine uses it at a time, apart from close.
type snapshots struct {
	owner     *Shards
	partition int32
	client    *kgo.Client
}

// openSnapshots fences the previous writer of the partition.
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

// load returns the last record of each key. If read cannot see its own mark, load ends
// the transaction that hides it and tries again, three times in all.
func (w *snapshots) load(ctx context.Context) (last map[string]*kgo.Record, err error) {
	for range 3 {
		if last, err = w.read(ctx); !errors.Is(err, errHidden) {
			return last, err
		}
		w.owner.Log.Warn("an unfinished transaction in the topic of snapshots is aborted", "partition", w.partition, "err", err)
		if err := w.writeAbortMarker(ctx); err != nil {
			return nil, fmt.Errorf("ending a transaction of the snapshots of shard %d: %w", w.partition, err)
		}
		fresh, err := w.owner.openSnapshots(ctx, w.partition) // after the abort marker, this client's producer epoch cannot be used any more
		if err != nil {
			return nil, err
		}
		w.client.Close()
		w.client = fresh.client
	}
	return nil, err
}

// read commits a mark and reads the partition up to it. The mark is needed because the
// end offset of a log with transactions and compaction is not the offset of a record.
// If another program holds a transaction open, the mark cannot be read; read then
// returns no records, and the logs are read from their beginning.
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
	previous := int64(-1) // offset of the record before this one
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
			case r.Offset > mark.Offset: // for example, the control record that commits the mark
				return nil, fmt.Errorf("%w: it was written at offset %d, and the records before and after it are at %d and %d (control %v)", errHidden, mark.Offset, previous, r.Offset, r.Attrs.IsControl())
			case r.Attrs.IsControl() || key == markKey:
			case r.Value == nil && r.Attrs.IsTransactional():
				delete(last, key)
			default: // also a record that no owner has written: restore finds it and does not use the snapshot
				last[key] = r
			}
			previous = r.Offset
		}
	}
}

// errHidden means that a record that was just committed cannot be read.
var errHidden = errors.New("the mark of the take-over cannot be read in the topic of snapshots")

// writeAbortMarker aborts a transaction that has no records. The embedded broker needs
// it, Apache Kafka does not. If the embedded broker is killed in the middle of a
// transaction, it treats the transaction as aborted after its restart, but writes no
// abort marker. A reader of committed records then also skips everything that this
// transactional id writes later, up to the next marker. The transaction here has no
// records, because records would be one more transaction that needs a marker. It uses
// the producer id and epoch of this take-over, so a successor fences it.
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

// commit writes records in one transaction. After an error the client must not be used
// any more.
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
