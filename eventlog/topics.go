package eventlog

// The topics. Names are fixed by the contract.
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
)

// AggregateTopics are the four logs of a shard, in the order in which a
// take-over reads and claims them.
var AggregateTopics = [...]string{Orders, Payments, Riders, Restaurants}

// IsAggregate says whether topic is read by the reader rule.
func IsAggregate(topic string) bool {
	switch topic {
	case Orders, Payments, Riders, Restaurants:
		return true
	}
	return false
}

// DefaultPartitions is the partition count of every co-partitioned topic. It
// is chosen once, at creation.
const DefaultPartitions = 12

// PartitionFor returns the partition of a key: murmur2 as Kafka's own default
// partitioner has it, so that any client finds the same one.
func PartitionFor(key string, partitions int32) int32 {
	return int32(murmur2([]byte(key))&0x7fffffff) % partitions
}
