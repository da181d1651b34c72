package eventlog

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
