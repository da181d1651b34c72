// Package consumer runs the consumers of topics: read models and policies. All of
// them run in the same way.
//
// # The files, in reading order
//
//	consumer.go         Consumer, which describes one, and Runtime, which runs them
//	runtime.go          Run: one group of workers per consumer, one session after another
//	session.go          a session: a membership of the Kafka group, with its poll loop
//	assign.go           a partition is assigned: take its checkpoint, start a worker
//	upkeep.go           what a session does from time to time: write checkpoints, look for operators' changes
//	worker.go           the worker of one partition: its fields, its start and its end
//	worker_queue.go     the worker's queue of fetched records
//	worker_position.go  how far the worker is, and what its checkpoint should say
//	scan.go             from records to events: the reader rule
//	batches.go          the worker's loop for Rows and Batch
//	tail.go             one reader of what is appended, for all consumers and for Follow
//	follow.go           Follow, for what reads partitions and is no consumer
//	combine.go          small transactions of several workers become one
//	keys.go             the worker's loop for Each, with its key queues
//	call.go             calls of handlers, transactions
//	failing.go          what the worker does with an event that failed, and with parked ones
//	parked/             what is decided about failed events: rows, copies, dead letters
//	unavailable.go      waiting for a dependency that is unavailable
//	wait.go             backoff and pauses
//	checkpoint.go       Checkpoint, a row of tomato.checkpoints
//	positions.go        Positions, which waits until a consumer has reached a position
//	telemetry.go        topics whose records are skipped when they fail
//	status.go           Status and Stopped, for operators and readiness
//	metrics.go          the metrics
//
// # What is authoritative
//
// The Kafka group of a consumer only decides which instance reads which
// partition; no offset is committed to it. The position of a consumer is a row of
// tomato.checkpoints, and each event that it could not handle is a row of
// tomato.parked. Both are loaded when a partition is assigned. An instance that
// takes a partition raises the epoch of the checkpoint. Every write of these rows
// compares the epoch, and that of a checkpoint its offset too, in the transaction
// that it belongs to. An instance that lost the partition without noticing
// therefore changes nothing any more.
//
// # The states of a worker
//
//	reading    fetched records wait in a bounded queue; fetching pauses while it is full
//	waiting    a dependency is unavailable: try again with backoff, count no failed attempt, show the lag
//	paused     more events are parked than the budget allows: only parked events are tried
//	drained    the partition is revoked or the runtime stops: calls under way end
//	           within a bound, then the checkpoint is written
//	abandoned  the partition is lost: stop and write nothing
//
// A worker cannot go on after some errors: a fenced checkpoint, a missing record in
// an aggregate topic, an offset out of range. Such an error ends the session. The
// next session begins after a backoff and loads everything again.
//
// # Handling
//
// Rows: one transaction has the handler's rows, the parked rows and the new
// checkpoint, so each event takes effect once. While a transaction is under way, the
// small commits of other partitions wait for it, a second at most, and then share the
// next one.
//
// Batch: the effect comes first. Then the parked rows and the checkpoint are
// written in one transaction. If nothing was parked, the checkpoint is written
// a fraction of a second later, in one statement for all partitions.
//
// Each: several keys are handled at the same time, the events of one key one after
// the other. A parked row is written before its record counts as done. The
// checkpoint is the position of the oldest record that is not done.
//
// With Batch and Each, events whose effect came before the checkpoint may be handled
// again after a crash, in the same order.
//
// # Failures
//
// A batch that fails is halved until the event that fails is alone. It is then
// tried a few times in place. After that the attempt has failed, and package parked
// decides what happens: see its comment. The worker of the source partition tries a
// parked event again when it is due.
package consumer
