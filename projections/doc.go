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
// kept up to date until it is dropped, and a query that meets a dropped generation
// refreshes the copy and runs again.
//
// # States of a generation
//
//	(none) ──Ensure──▶ live      the first one: filled by its consumer from the first record on
//	(none) ──Rebuild─▶ filling   written by the one rebuild that holds the read model's lock
//	filling ──────────▶ live      filled up to its targets: every process that projects keeps it up to date
//	live ─────────────▶ serving   its number is in read_models; the generation before stays live
//	live, filling ──Drop──▶ (none)
//
// A rebuild that is killed leaves a filling generation. Nobody reads it, and the
// next rebuild of the read model drops it.
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
// consumer waits for it. A query fails with eventlog.ErrBehind if its generation
// does not pass the query's Consistency-Token in time.
//
// # The files, in reading order
//
//	models.go           the list of read models
//	orders.go           a read model; also payments.go, restaurants.go, riders.go
//	rider_positions.go  what the riders have beside a fold: positions and free riders
//	table.go            how a batch of events becomes rows
//	text.go             values as text, for statements and COPY
//	foldversion.go      generated: the versions of the folds that make the rows
//	readmodels.go       generations in use: Ensure, Follow, Read, Project
//	rebuild.go          a rebuild, from the fill to the switch
//	fill.go             how a rebuild folds a partition in memory
//	generations.go      switch and drop
//	search.go           the questions of the command side
//	feed.go             what the feeds ask
//	status.go           how far each generation is
package projections
