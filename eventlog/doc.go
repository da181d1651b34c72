// Package eventlog is Kafka as Tomato uses it: records and events, the topics, the
// reader rule, positions and tokens, and the embedded broker. It does not use
// Postgres. The runtime of consumers, which does, is package eventlog/consumer.
//
// The files, in reading order:
//
//	event.go      an event, as a record and read from one
//	rule.go       the reader rule: which records are valid
//	topics.go     the table of topics, and how they are created and verified
//	token.go      positions and consistency tokens
//	feedbase.go    how far the feeds had published the logs
//	feedend.go     where the log of these bases ends
//	logid.go      which logs a client's token is for
//	ends.go       whether the positions of a token exist
//	endreader.go  the ends of topics, for many callers at a time
//	read.go       reading a range of a log; start and end offsets
//	readat.go     reading single records, anywhere in the logs
//	sizes.go      the bytes of logs, and of the records of each type
//	beginning.go  logs whose first records have been deleted
//	errors.go     how a handler marks the kind of a failure
//	logsampler.go  one log entry for many events of the same kind
//	config.go     how to connect to the brokers
//	broker.go     the embedded broker
//	broker_groups.go  ends rebalances that the embedded broker does not finish
//	murmur2.go    the hash by which Kafka chooses partitions
package eventlog
