package eventlog

// FeedBase says how far an instance had published the logs that the feeds read. Instances
// append such records to topic feed (projections/realtime). A client's place is relative to
// one.
type FeedBase struct {
	// ID is the offset of the record, or NoFeedBase. Logs that were restored from a backup
	// may have another record at the same offset.
	ID int64
	// Key tells the record from all others. It is chosen at random when it is written.
	Key string
	// Passed has for each log the offset of the last record that had been published, or -1.
	Passed map[TopicPartition]int64
}

// NoFeedBase is the ID of a base that is not in the log, because it could not be written.
const NoFeedBase int64 = -1

// FeedBaseKey is the key of the records of all bases, so that they are in one partition.
const FeedBaseKey = "feed-base"

// FeedBases returns the log that has the bases. partitions is how many topic feed has.
//
// A token that names a position there stands for all logs that it does not name: whoever
// begins after the token begins, in each of these logs, where the newest base up to that
// position was. So a token is short, however many logs there are, and what is appended
// after it is not missed in a log that was empty, or that it leaves out.
func FeedBases(partitions int32) TopicPartition {
	return TopicPartition{Feed, PartitionFor(FeedBaseKey, partitions)}
}
