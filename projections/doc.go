// Package projections keeps the read models. A read model is a set of tables in
// Postgres whose rows are the fold of events. Each read model has generations: a
// rebuild folds the log into a new one beside the one that answers queries.
//
// # What is authoritative
//
// The log is. A row is the fold of its aggregate's events up to the row's version.
// tomato.checkpoints has the position in the log up to which a table is folded.
// The rows and the checkpoint change in one transaction, which package
// eventlog/consumer opens. tomato.generations says which generations exist, and
// tomato.read_models says which one answers queries.
//
// A process holds a copy of the last two, which Follow refreshes every
// pollInterval. An outdated copy does no harm: the generation that served before is
// kept up to date until it has gone, it is dropped only after all processes have had the
// time to notice, and a query that meets a dropped generation refreshes the copy and runs
// again. A query that waits for its Consistency-Token goes on waiting at the generation
// that takes the place of its own.
//
// # States of a generation
//
//	(none) ──Ensure──▶ serving              the first one: filled by its consumer from the first record on
//	(none) ──Rebuild─▶ filling              written by the one rebuild that holds the read model's lock
//	filling ─────────▶ catching_up          filled up to its targets, with all indexes
//	catching_up ─────▶ verified             equal to the rows that serve; every process of its fold that projects keeps it up to date
//	verified, standby ─switch─▶ serving     its number is in read_models
//	serving ──switch─▶ standby              kept up to date for a way back; an older standby goes
//	all but serving ─▶ gone ──▶ (none)      nobody uses it; then its schema, row and consumer group are removed
//
// The checkpoints and the parked events of a generation refer to its row in
// tomato.generations. They go with it, and a consumer that has not noticed cannot write
// them again. A schema is made once, when its generation is made, and never migrated.
//
// # Folds
//
// Each generation names the version of the fold that made it (FoldVersion), which also
// covers its tables. A process writes to generations of its own fold only. It answers
// from the serving generation if that has its fold, otherwise from the standby if that has
// it, and otherwise from the serving one as it is. So two
// builds with different folds run side by side, each with a generation of its own, and
// either may switch. A process that has no generation of its fold says that a rebuild is
// due (RebuildDue).
//
// # A rebuild
//
// It fills the tables up to targets, which are the positions of the serving generation
// when it begins, so that the new one is never ahead. It folds each partition in memory
// and writes the rows by COPY, without most indexes, and creates these afterwards. Then it
// opens a transaction that sees the serving rows as of one moment, folds on to exactly
// the positions that the serving generation had then, and compares all rows with these.
// If they are equal, the generation is verified: the processes of its fold that project
// start its consumer. When they have all partitions and have passed the end of the log,
// one transaction switches.
//
// Each step is a transaction with the note that it was done, so that any later process of
// the same fold can resume it: the checkpoints say what is filled, tomato.generations which
// indexes are missing, and the state the rest. The epochs of the checkpoints and the lock
// of the read model keep a second process out.
//
// # Writing
//
// Projections write rows and notify nobody, so a rebuild has no effect outside the
// database. Each table is written by the workers of one topic only. If the workers
// of two topics loaded and wrote the same row, one would overwrite the changes of
// the other. No checkpoint would show it, and the result of a rebuild would depend
// on the timing. A read model of several topics therefore has a table for each,
// and its queries join them.
//
// # Failure
//
// An event whose version does not follow its row's version, or that cannot be
// decoded, is poison: no retry can help. The consumer runtime parks it, and the
// later events of that aggregate behind it. If Postgres is unavailable, the
// consumer waits for it. An event that an operator has discarded is skipped: the row's
// version moves on without it, in every generation and in every rebuild. A query fails with eventlog.ErrBehind if its generation
// does not pass the query's Consistency-Token in time.
//
// # The files, in reading order
//
//	models.go           the list of read models
//	orders.go           a read model; also payments.go, restaurants.go, riders.go
//	rider_positions.go  what the riders have beside a fold: positions and free riders
//	riders_upkeep.go    keeps searches for riders fast: old positions, dead rows
//	table.go            how a batch of events becomes rows
//	skipped.go          which events are skipped
//	text.go             values as text, for statements and COPY
//	foldversion.go      generated: the versions of the folds that make the rows
//	readmodels.go       ReadModels: the first generations, the consumers of generations
//	schemas.go          what `tomato migrate` asks: missing and forgotten schemas
//	generations.go      the states of generations, and which one answers
//	reading.go          queries, and their wait for a token
//	lock.go             the lock of a read model
//	switch.go           switch and drop
//	sweep.go            removes what dropped generations have left
//	operator.go         what operators do to read models, which is recorded; the comparison with the standby
//	skip.go             an event is skipped in all generations
//	history.go          old history is removed
//	refold.go           one aggregate is folded again from the log
//	rebuild.go          a rebuild: what is begun, resumed, canceled, and in which order it goes
//	rebuild_steps.go    its steps: folding all partitions, indexes, waiting for a database that does not answer
//	fold.go             how it folds one partition, and parks what cannot be folded
//	fill.go             the rows of a partition in memory
//	verify.go           the comparison with the rows that serve, at the same positions
//	compare.go          how the rows of two generations are compared
//	handover.go         how the processes that project take the new generation over
//	progress.go         how far it is
//	search.go           the questions of the command side
//	feed.go             what the feeds ask
//	status.go           how far each generation is
package projections
