package eventlog

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
)

// The topics. Their names are public (queryside/feed/asyncapi.json) and never change.
const (
	Orders          = "orders"
	Payments        = "payments"
	Riders          = "riders"
	Restaurants     = "restaurants"
	RiderLocations  = "rider-locations"
	PaymentWebhooks = "payment-webhooks"
	Feed            = "feed"
	ShardSnapshots  = "shard-snapshots"
	ShardOwners     = "shard-owners"
	ShardFence      = "shard-fence"
	SubjectKeys     = "subject-keys"
)

// AggregateTopics are the four logs of a shard, in the order in which a
// take-over reads and claims them.
var AggregateTopics = [...]string{Orders, Payments, Riders, Restaurants}

// IsAggregate reports whether topic is one of AggregateTopics, which are read by the
// reader rule.
func IsAggregate(topic string) bool {
	switch topic {
	case Orders, Payments, Riders, Restaurants:
		return true
	}
	return false
}

// The stages of the topics on which a consumer parks the events of one topic.
const (
	Retry5s    = "retry-5s"
	Retry30s   = "retry-30s"
	DeadLetter = "dlq"
)

// ParkedTopic returns the name of the topic on which consumer parks events of topic.
// stage is Retry5s, Retry30s or DeadLetter.
func ParkedTopic(topic, consumer, stage string) string {
	return topic + "." + consumer + "." + stage
}

// DefaultPartitions is the number of partitions of every topic if none is configured.
// It is chosen once, when the topics are created.
const DefaultPartitions = 12

// PartitionFor returns the partition of a key. It is the partition that Kafka's default
// partitioner chooses, so any client finds the same one.
func PartitionFor(key string, partitions int32) int32 {
	return int32(murmur2([]byte(key))&0x7fffffff) % partitions
}

// maxCompactionLag is the setting after which time a record that was replaced is removed.
const maxCompactionLag = "max.compaction.lag.ms"

// forever is the retention of records that are never deleted.
const forever time.Duration = -1

// A topic is one row of the table of topics.
type topic struct {
	name    string
	compact bool          // keep the last record of each key
	keep    time.Duration // how long records stay, or forever
	lossy   bool          // an operator may set a shorter retention, because no guarantee depends on these records
	maxByte int           // the largest batch in bytes; 0: the broker's default
	single  bool          // one partition, whatever the layout says
	vanish  time.Duration // what was replaced or deleted leaves the disks after about this time; 0: when the brokers compact
	segment int           // the bytes of a segment; 0: the broker's default, 1 GiB. Small segments are compacted sooner, so a take-over reads less
}

// table declares every topic. The number of partitions, the replication,
// min.insync.replicas and unclean leader election are the same for all topics, see
// configs and create.
func (l Layout) table() []topic {
	const day = 24 * time.Hour
	ts := []topic{
		{name: Orders, keep: forever},
		{name: Payments, keep: forever},
		{name: Riders, keep: forever},
		{name: Restaurants, keep: forever},
		{name: RiderLocations, compact: true, keep: 7 * day, lossy: true, vanish: day},
		// A record has a body of up to 1 MiB, and headers. Not every body compresses.
		{name: PaymentWebhooks, keep: 30 * day, maxByte: 2 << 20},
		{name: Feed, keep: day, lossy: true},
		// A restaurant with its whole menu is one record.
		{name: ShardSnapshots, compact: true, keep: forever, segment: 32 << 20, maxByte: 8 << 20},
		{name: ShardOwners, compact: true, keep: forever},
		// If retention removes a record that an owner has not read, the owner claims its
		// shard again; nothing else follows.
		{name: ShardFence, keep: 6 * time.Hour, lossy: true, segment: 16 << 20},
		// A destroyed key must leave the disks soon.
		{name: SubjectKeys, compact: true, keep: forever, single: true, vanish: time.Hour, segment: 16 << 20},
	}
	for _, s := range l.Consumers {
		for _, t := range s.Topics {
			// A parked event is the source record and the reasons of its failure.
			// So its topic must accept larger records than the source topic.
			const maxByte = 2 << 20
			ts = append(ts,
				topic{name: ParkedTopic(t, s.Name, Retry5s), keep: 30 * day, maxByte: maxByte},
				topic{name: ParkedTopic(t, s.Name, Retry30s), keep: 30 * day, maxByte: maxByte},
				topic{name: ParkedTopic(t, s.Name, DeadLetter), keep: forever, maxByte: maxByte})
		}
	}
	return ts
}

// configs returns the settings with which the topic is created.
func (t topic) configs(replication int16) map[string]*string {
	policy := "delete"
	if t.compact {
		policy = "compact"
		if t.keep != forever {
			policy = "compact,delete"
		}
	}
	ms := int64(-1)
	if t.keep != forever {
		ms = t.keep.Milliseconds()
	}
	insync := "1"
	if replication > 1 {
		insync = "2"
	}
	c := map[string]*string{
		"cleanup.policy": &policy,
		// It is also set if the policy is compact only. Kafka ignores it then, but the
		// embedded broker would apply its default of 7 days.
		"retention.ms":                   kadm.StringPtr(strconv.FormatInt(ms, 10)),
		"retention.bytes":                kadm.StringPtr("-1"),
		"message.timestamp.type":         kadm.StringPtr("CreateTime"),
		"min.insync.replicas":            &insync,
		"unclean.leader.election.enable": kadm.StringPtr("false"),
	}
	if t.segment > 0 {
		c["segment.bytes"] = kadm.StringPtr(strconv.Itoa(t.segment))
		c["min.cleanable.dirty.ratio"] = kadm.StringPtr("0.2")
	}
	if t.vanish > 0 {
		// A segment is compacted only when it is closed, which happens after this time
		// when the next record comes. Tombstones stay for a day, so that a slow reader sees
		// them.
		ms := kadm.StringPtr(strconv.FormatInt(t.vanish.Milliseconds(), 10))
		c["segment.ms"], c[maxCompactionLag] = ms, ms
		c["min.cleanable.dirty.ratio"] = kadm.StringPtr("0.01")
		c["delete.retention.ms"] = kadm.StringPtr(strconv.FormatInt((24 * time.Hour).Milliseconds(), 10))
	}
	if t.maxByte > 0 {
		c["max.message.bytes"] = kadm.StringPtr(strconv.Itoa(t.maxByte))
	}
	return c
}

// Subscription is a consumer and the topics that it reads. They determine the names of
// its retry and dead letter topics.
type Subscription struct {
	Name   string
	Topics []string
}

// Layout is the configuration of all topics of one installation.
type Layout struct {
	// Partitions is the number of partitions of each topic. 0 means DefaultPartitions.
	// It cannot be changed later, because keys would move to other shards.
	Partitions int32
	// Replication is the number of copies of each partition when a topic is created.
	// 0 means three, or the number of brokers if there are fewer.
	Replication int16
	// Consumers are the consumers that have retry and dead letter topics.
	Consumers []Subscription
}

// partitionsOf returns the number of partitions of a topic.
func (l Layout) partitionsOf(t topic) int32 {
	switch {
	case t.single:
		return 1
	case l.Partitions == 0:
		return DefaultPartitions
	}
	return l.Partitions
}

// TopicRow is the state of one topic, as Describe returns it.
type TopicRow struct {
	Topic         string   `json:"topic"`
	Missing       bool     `json:"missing,omitempty"`
	Partitions    int      `json:"partitions"`
	Replication   int      `json:"replication"`
	CleanupPolicy string   `json:"cleanupPolicy,omitempty"`
	RetentionMS   int64    `json:"retentionMs"` // in milliseconds; -1: for ever
	MinInsync     int      `json:"minInsyncReplicas"`
	Records       int64    `json:"records"`         // end offsets minus start offsets; includes control records, and records that compaction has removed
	Bytes         *int64   `json:"bytes,omitempty"` // of the log on the brokers' disks, all replicas together; nil: the brokers do not tell
	Problems      []string `json:"problems,omitempty"`
}

// Ensure verifies the topics of the layout that exist, and creates those that are
// missing. It never changes a topic that exists. If one has wrong settings, Ensure
// creates nothing and fails; its error lists every mismatch with its remedy. Several
// processes may call it at once.
func Ensure(ctx context.Context, adm *kadm.Client, l Layout) error {
	rows, err := describe(ctx, adm, l)
	if err != nil {
		return err
	}
	if err := mismatches(rows); err != nil {
		return err
	}
	missing := 0
	for _, r := range rows {
		if r.Missing {
			missing++
		}
	}
	if missing == 0 {
		return nil
	}
	if err := create(ctx, adm, l, rows); err != nil {
		return err
	}
	// The brokers' metadata has the new topics some time after the controller has
	// answered. Until then a producer would be told that a topic is unknown.
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		rows, err = describe(ctx, adm, l)
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(rows, func(r TopicRow) bool { return r.Missing }) {
			// Another process with another layout may have created the topics.
			return mismatches(rows)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("topics were created but do not show: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

func create(ctx context.Context, adm *kadm.Client, l Layout, rows []TopicRow) error {
	replication := l.Replication
	if replication == 0 {
		brokers, err := adm.ListBrokers(ctx)
		if err != nil {
			return fmt.Errorf("listing brokers: %w", err)
		}
		replication = int16(min(3, len(brokers)))
	}
	table := l.table()
	var errs []error
	for len(table) > 0 {
		// One request creates all topics that have the same settings as the first.
		like := table[0]
		var names []string
		table = slices.DeleteFunc(table, func(t topic) bool {
			name := t.name
			t.name, like.name = "", ""
			if t != like {
				return false
			}
			if slices.ContainsFunc(rows, func(r TopicRow) bool { return r.Topic == name && r.Missing }) {
				names = append(names, name)
			}
			return true
		})
		if len(names) == 0 {
			continue
		}
		partitions := l.partitionsOf(like)
		resp, err := adm.CreateTopics(ctx, partitions, replication, like.configs(replication), names...)
		if err != nil {
			return fmt.Errorf("creating topics: %w", err)
		}
		for _, r := range resp.Sorted() {
			if r.Err != nil && !errors.Is(r.Err, kerr.TopicAlreadyExists) {
				errs = append(errs, fmt.Errorf("creating topic %s (%d partitions, replication %d): %w %s", r.Topic, partitions, replication, r.Err, r.ErrMessage))
			}
		}
	}
	return errors.Join(errs...)
}

// Describe returns the state of the topics of the layout, in the order of table. What
// Ensure would refuse is in Problems.
func Describe(ctx context.Context, adm *kadm.Client, l Layout) ([]TopicRow, error) {
	rows, err := describe(ctx, adm, l)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, r := range rows {
		if !r.Missing {
			names = append(names, r.Topic)
		}
	}
	if len(names) == 0 {
		return rows, nil
	}
	starts, err := adm.ListStartOffsets(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("listing start offsets: %w", err)
	}
	ends, err := adm.ListEndOffsets(ctx, names...)
	if err != nil {
		return nil, fmt.Errorf("listing end offsets: %w", err)
	}
	for i := range rows {
		r := &rows[i]
		ends.Each(func(end kadm.ListedOffset) {
			if end.Topic != r.Topic {
				return
			}
			start, _ := starts.Lookup(end.Topic, end.Partition)
			if err := errors.Join(start.Err, end.Err); err != nil {
				r.Problems = append(r.Problems, fmt.Sprintf("partition %d has no offsets: %v", end.Partition, err))
				return
			}
			r.Records += end.Offset - start.Offset
		})
	}
	addBytes(ctx, adm, rows)
	return rows, nil
}

// addBytes enters the size of each topic, if the brokers tell it.
func addBytes(ctx context.Context, adm *kadm.Client, rows []TopicRow) {
	partitions := map[string]int{}
	for _, r := range rows {
		if !r.Missing {
			partitions[r.Topic] = r.Partitions
		}
	}
	sizes, err := LogBytes(ctx, adm, partitions)
	if err != nil {
		return // nothing else depends on it
	}
	for i := range rows {
		if size, ok := sizes[rows[i].Topic]; ok {
			rows[i].Bytes = &size
		}
	}
}

func describe(ctx context.Context, adm *kadm.Client, l Layout) ([]TopicRow, error) {
	table := l.table()
	names := make([]string, len(table))
	for i, t := range table {
		names[i] = t.name
	}
	// With the authorized operations, the client asks the brokers. Otherwise it may
	// answer from its cache, in which a topic that was just created is unknown.
	details, err := adm.ListTopics(kadm.WithAuthorizedOps(ctx), names...)
	if err != nil {
		return nil, fmt.Errorf("listing topics: %w", err)
	}
	rows := make([]TopicRow, len(table))
	var present []string
	for i, t := range table {
		rows[i].Topic = t.name
		d, ok := details[t.name]
		switch {
		case !ok || errors.Is(d.Err, kerr.UnknownTopicOrPartition):
			rows[i].Missing = true
			continue
		case d.Err != nil:
			return nil, fmt.Errorf("topic %s: %w", t.name, d.Err)
		}
		rows[i].Partitions = len(d.Partitions)
		rows[i].Replication = d.Partitions.NumReplicas()
		present = append(present, t.name)
	}
	if len(present) == 0 {
		return rows, nil
	}
	configs, err := adm.DescribeTopicConfigs(ctx, present...)
	if err != nil {
		return nil, fmt.Errorf("describing topics: %w", err)
	}
	byName := make(map[string]map[string]string, len(configs))
	for _, c := range configs {
		if errors.Is(c.Err, kerr.UnknownTopicOrPartition) {
			continue // created a moment ago, or being deleted
		}
		if c.Err != nil {
			return nil, fmt.Errorf("describing topic %s: %w %s", c.Name, c.Err, c.ErrMessage)
		}
		m := make(map[string]string, len(c.Configs))
		for _, kv := range c.Configs {
			m[kv.Key] = kv.MaybeValue()
		}
		byName[c.Name] = m
	}
	for i, t := range table {
		r := &rows[i]
		if r.Missing {
			continue
		}
		c, ok := byName[t.name]
		if !ok {
			*r = TopicRow{Topic: t.name, Missing: true}
			continue
		}
		r.CleanupPolicy = c["cleanup.policy"]
		r.RetentionMS = number(c["retention.ms"], -1)
		r.MinInsync = int(number(c["min.insync.replicas"], 1))
		r.Problems = t.verify(l, *r, c)
	}
	return rows, nil
}

func number(s string, unset int64) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return unset
	}
	return n
}

// verify returns what is wrong with a topic that exists, and what to do about it.
func (t topic) verify(l Layout, r TopicRow, c map[string]string) (problems []string) {
	bad := func(format string, a ...any) { problems = append(problems, fmt.Sprintf(format, a...)) }
	if want := int(l.partitionsOf(t)); r.Partitions != want {
		// The number of partitions must not be changed, because keys would move to
		// other shards. Only a copy to new topics can have another number.
		bad("has %d partitions, not %d: set the partition count to what was chosen at creation; a topic is never repartitioned", r.Partitions, want)
	}
	if c["unclean.leader.election.enable"] == "true" {
		bad("allows unclean leader election, which loses acknowledged records: set unclean.leader.election.enable=false")
	}
	if r.Replication > 1 && r.MinInsync < 2 {
		bad("has replication %d with min.insync.replicas=%d, so that one broker alone may acknowledge: set min.insync.replicas=2", r.Replication, r.MinInsync)
	}
	if n := number(c["max.message.bytes"], int64(t.maxByte)); n < int64(t.maxByte) {
		bad("takes no batch above %d bytes: set max.message.bytes=%d", n, t.maxByte)
	}
	if lag := number(c[maxCompactionLag], math.MaxInt64); t.vanish > 0 && !t.lossy && lag > (24*time.Hour).Milliseconds() {
		bad("may keep destroyed keys on disk: set %s=%d and segment.ms=%[2]d", maxCompactionLag, t.vanish.Milliseconds())
	}
	compacts, deletes := strings.Contains(r.CleanupPolicy, "compact"), strings.Contains(r.CleanupPolicy, "delete")
	switch {
	case t.lossy:
	case t.compact && !compacts:
		bad("has cleanup.policy=%s: set cleanup.policy=compact", r.CleanupPolicy)
	case !t.compact && compacts:
		bad("has cleanup.policy=%s, which deletes records of a key that has newer ones: set cleanup.policy=delete", r.CleanupPolicy)
	case deletes:
		if r.RetentionMS >= 0 && (t.keep == forever || r.RetentionMS < t.keep.Milliseconds()) {
			want := int64(-1)
			if t.keep != forever {
				want = t.keep.Milliseconds()
			}
			bad("deletes records after %s: set retention.ms=%d", time.Duration(r.RetentionMS)*time.Millisecond, want)
		}
		if n := number(c["retention.bytes"], -1); n >= 0 {
			bad("deletes records above %d bytes: set retention.bytes=-1", n)
		}
	}
	return problems
}

func mismatches(rows []TopicRow) error {
	var lines []string
	for _, r := range rows {
		for _, p := range r.Problems {
			lines = append(lines, "topic "+r.Topic+" "+p)
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return fmt.Errorf("the topics on the brokers are not as they must be; nothing was created or changed:\n  %s", strings.Join(lines, "\n  "))
}
