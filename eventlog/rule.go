package eventlog

import "tomato/domain"

// Rule is the reader rule. It decides which records of one partition of an aggregate
// topic are valid. The decision depends only on the records before, so all readers
// derive the same history without a coordinator, a clock or a vote.
//
// The rule takes the records in the order of their offsets:
//
//   - A claim is valid if its term is the term of the last valid claim plus 1. The
//     first claim has term 1.
//   - An event is valid if its term is the term of the last valid claim, and its seq is
//     the seq of the last valid event of that term plus 1. The first event after the
//     claim has seq 1.
//   - All other records are invalid.
//
// The zero value is the rule at the start of a partition. A reader that starts in the
// middle of a log starts with the Term and Seq of a valid record and gives the rule
// the records after it. A Rule is not safe for concurrent use.
type Rule struct {
	Term int64 // of the last valid claim; 0 before the first
	Seq  int64 // of the last valid record in Term; 0 right after the claim
}

// Accepts reports whether e is valid. If it is, Accepts moves the rule on to e. The
// caller must give it every record in offset order.
func (r *Rule) Accepts(e *Event) bool {
	if e.Type == ShardClaimed {
		if e.Term != r.Term+1 {
			return false
		}
		r.Term, r.Seq = e.Term, 0
		return true
	}
	if e.Term == 0 || e.Term != r.Term || e.Seq != r.Seq+1 {
		return false
	}
	r.Seq = e.Seq
	return true
}

// The reasons why a reader skips a record of an aggregate topic. They are the values
// of the label reason of the metrics that count such records.
const (
	SkipNoEvent     = "no_event"     // the record lacks an event's headers, so another program has written it
	SkipNotNext     = "not_next"     // the record is a fenced record, or a second copy
	SkipNoAggregate = "no_aggregate" // the record is valid, but its subject is no id, so it belongs to no aggregate
)

// Take decides what a reader does with the partition's next record, and moves the rule
// on. All readers decide by Take:
//
//   - If take is true, the record is valid and belongs to the aggregate e.Subject. It
//     takes effect there. If it cannot, because e.Fault is not nil or this build does
//     not know the event, it stops that aggregate and no other.
//   - If skipped is not "", the reader skips the record, and counts it with this reason.
//   - Otherwise the record is a valid SHARD_CLAIMED, which belongs to no aggregate. In
//     logs that versions before the first release have written, it may be a SHARD_SEEN.
func (r *Rule) Take(e *Event) (take bool, skipped string) {
	switch {
	case !r.Accepts(e):
		if e.Type == "" || e.Term <= 0 {
			return false, SkipNoEvent
		}
		return false, SkipNotNext
	case e.Type == ShardClaimed || e.Type == shardSeen:
		return false, ""
	case !domain.ValidID(e.Subject):
		return false, SkipNoAggregate
	}
	return true, ""
}
