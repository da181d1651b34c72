// Package shard is the write side: it decides commands and appends their events
// to the aggregate topics, with one writer per partition at a time.
//
// A shard is partition p of the topics orders, payments, riders and restaurants,
// together with the aggregates in it, which are held in memory. One instance
// owns a shard at a time. On each instance a shard is in one of these states:
//
//	assigned   The consumer group command-shards has assigned the shard to this
//	           instance. The group subscribes to the topic orders alone and
//	           fetches no records.
//	opening    The instance reads the four logs to their ends, folds the valid
//	           records, announces its claim on the topic shard-fence, and then
//	           appends a claim with the next term to each log.
//	serving    All four claims are known to be valid. The shard takes commands.
//	leaving    The group has revoked the shard, or this instance stops. The shard
//	           serves on until the next owner has claimed it, so that no command
//	           waits for the rebalance or for what the next owner has to read.
//	stopped    The shard was deposed by a higher claim, or handed over, or an
//	           append failed or is invalid. The instance opens it again only after
//	           the group has confirmed that it is still assigned here, with backoff.
//
// The log is authoritative. eventlog.Rule decides from the log's prefix which
// records are valid, for the owner as for every other reader. The group only says
// which instance should try to own a shard. If two instances both believe that
// they own a shard, only one of them acknowledges appends: the appends under the
// lower claim are invalid, and their offsets are not the ones that their writer
// expected, so the writer notices and acknowledges none of them.
//
// A lost acknowledgement, a record that was appended twice, and a pause of the
// process all show as an unexpected offset. The owner then reads the records
// between the expected and the actual offset. A caller whose outcome is not known
// gets ErrUnavailable. It can repeat the command with the same idempotency key:
// the event has the key, so the repeat gets the first answer.
//
// docs/write-side.md argues step by step why an answer can be believed.
//
// # Files, in reading order
//
// One command:
//
//	request.go           Request, Result and the interface Executor
//	commands.go          commands that the write side itself defines, and pricing
//	execute.go           finds the shard of a command, here or on another instance
//	queue.go             the bounded queue from callers to a shard's loop
//	shard.go             the shard's loop: takes commands and handles them one by one
//	decide.go            rights, preconditions and the decision, as functions over the state
//	epoch.go             which versions of which events may be written yet
//	append.go            moves the state on and gives the event to the producer
//	outbox.go            collects the appends of all shards into fewer produce requests
//	compress.go          compresses large batches
//	acknowledge.go       compares offsets, answers callers, verifies unexpected offsets
//	confirm.go           answers that append nothing, and what confirms them
//	fence.go             the log shard-fence: announcing a claim, and checking that nobody has
//	stop.go              how a shard fails or is deposed, and what its callers are told
//
// The state:
//
//	state.go             the aggregates of a shard in memory, and their replay
//	keys.go              idempotency keys that were used within the last 24 hours
//	log.go               what the owner knows of one log: offsets, appends in flight
//	deadlines.go         deadlines of orders, and the commands that they issue
//	archive.go           closed orders shrink and are evicted
//	unread.go            aggregates with an event that this build cannot read
//	menus.go             the table of all restaurants, from which orders are priced
//
// Taking a shard over:
//
//	shards.go            Config, and the shards of one instance
//	group.go             follows the consumer group; opens, serves and stops shards
//	open.go              the take-over of one shard: load, read, claim
//	snapshots.go         reads and writes the topic of snapshots
//	snapshots_restore.go makes aggregates from a loaded snapshot
//	snapshots_cut.go     decides when a snapshot is written, and what is in it
//	foldversion.go       generated: the versions of the folds that make the states
//
// Several instances:
//
//	owner_record.go      the signed record that names a shard's owner
//	owners.go            the table of owners, from the topic shard-owners
//	announce.go          writes this instance into that topic
//	forward.go           sends a command to the owner, and takes forwarded commands
//	wire.go              the JSON of forwarded commands and their answers
//	check.go             validates forwarded commands
//	signed.go            signatures of calls between instances
//	status.go            the status and the gauges of each shard
package shard
