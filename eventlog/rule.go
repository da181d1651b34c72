package eventlog

import "tomato/domain"

// Rule is the reader rule: it decides which records of one partition of an
// aggregate topic count. It is a pure function of the log's prefix, so every
// reader derives the same history without a coordinator, a clock or a vote.
//
// Going by offset: a claim counts if its term is the last one's + 1; an event
// (or SHARD_SEEN) counts if its term is that of the last claim that counts and
// its seq is one more than the last that counted in that term; all else is void.
//
// The zero value is the rule at the start of a partition. Who starts in
// mid-log starts with the Term and Seq that held there. Not safe for
// concurrent use.
type Rule struct {
	Term int64 // of the last claim that counts; 0 before the first
	Seq  int64 // last that counted in Term; 0 right after the claim
}

// Counts says whether e counts, and advances the rule when it does. Records
// must be given in offset order, none left out.
func (r *Rule) Counts(e *Event) bool {
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

// Why a record of an aggregate topic is skipped: the label reason of the metrics
// that count such records.
const (
	SkipNoEvent     = "no_event"     // no event's headers: some other program's record, or noise
	SkipNotNext     = "not_next"     // not the next record of the present writer: of a deposed one, or a second copy
	SkipNoAggregate = "no_aggregate" // valid by the rule, but its subject is no id: it belongs to no aggregate
)

// Take says what a reader does with the partition's next record, and advances the
// rule. It is the one policy of all readers:
//
//   - take: the record is valid and belongs to aggregate e.Subject. It must take
//     effect there, or stop that aggregate and nothing else: where e.Fault is not
//     nil, or the event is one that this build does not know.
//   - skipped, if not "": the record is to be passed over and counted with this
//     reason, whatever it holds.
//   - Neither: SHARD_CLAIMED or SHARD_SEEN, which belong to no aggregate.
func (r *Rule) Take(e *Event) (take bool, skipped string) {
	switch {
	case !r.Counts(e):
		if e.Type == "" || e.Term <= 0 {
			return false, SkipNoEvent
		}
		return false, SkipNotNext
	case e.Type == ShardClaimed || e.Type == ShardSeen:
		return false, ""
	case !domain.ValidID(e.Subject):
		return false, SkipNoAggregate
	}
	return true, ""
}
