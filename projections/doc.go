// Package projections keeps the read models: rows of Postgres that are the fold
// of events (orders, payments, riders, restaurants), each in generations.
//
// # What is authoritative
//
// The log. A table's row is the fold of its aggregate's events up to its
// version, and tomato.checkpoints says up to where; both move in one
// transaction, which the runtime of package eventlog opens. tomato.generations
// says which generations exist, tomato.read_models which one answers queries.
// A process holds a copy of the last two, at most a poll old (Follow). A stale
// copy is harmless: the generation that served before is kept up to date until
// it is dropped, and a query that meets a dropped one looks again.
//
// # States of a generation
//
//	(none) ──Ensure──▶ live      the first one: filled by its consumer from the first record on
//	(none) ──Rebuild─▶ filling   written by the one rebuild that holds the model's lock
//	filling ──────────▶ live      filled to its targets: every process that projects follows it
//	live ─────────────▶ serving   its number is in read_models; the one before stays live
//	live, filling ──Drop──▶ (none)
//
// A rebuild that is killed leaves a filling generation, which the next one of
// the model drops. Nothing else looks at it.
//
// # Writing
//
// Projections write rows and nothing else: nobody is told anything, so a
// rebuild has no effect outside. A table is written by the lanes of one topic
// only. Two lanes that load and write the same row would lose updates that no
// checkpoint sees, and a rebuild would depend on how they interleave; a read
// model with several topics has a table for each, joined in its queries.
//
// # Failure
//
// An event whose version does not follow its row's is corruption, one that
// cannot be decoded as well: both are poison, which the runtime parks, with the
// later events of that aggregate behind it. Postgres away is waited for. A
// query whose generation does not reach its Consistency-Token in time fails
// with eventlog.ErrBehind.
package projections
