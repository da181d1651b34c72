// Package subjectkeys seals the personal fields of customers and riders, so that a
// person can be forgotten: when the keys of a person are destroyed, everything that was
// sealed with them is unreadable, wherever it is kept.
//
// A subject is whoever the data is about: customer/<id>, rider/<id>, or
// webhooks/<YYYY-MM> for webhooks of a month that could not be decoded. Each subject has
// a key of its own. The keys are on the compacted topic subject-keys, wrapped under the
// master key, which only the instances have.
//
// The topic is authoritative. A Keyring holds what the topic has, follows it, and makes
// the missing key of a subject:
//
//   - Make: the keyring reads the topic to its present end, to be sure that no other
//     instance has made a key. It appends a key, waits for the acknowledgement, and reads
//     up to it. Then it uses the first key of the subject in the log. If two instances
//     make keys at once, both use the same one, and the other key is taken back.
//   - Open: a text names its key. A key that the keyring does not hold may be one that it
//     has not read yet, so it reads the topic to its present end. If the key is not
//     there, it was destroyed if there is its tombstone or an erasure of the subject.
//     Otherwise it is lost, which is counted and logged.
//   - Erase: a record for the audit, which names the keys that are destroyed by it; a
//     tombstone for each of them; and the record again, which says that all is done. A
//     server finishes an erasure that was begun and not finished.
//   - Failure: if the topic cannot be read, sealing with a new key and opening with an
//     unknown one fail with eventlog.ErrUnavailable. Keys that are held go on working. A
//     key whose master key is missing fails in the same way, with a *MissingMasterError.
//
// The files, in reading order:
//
//	subject.go   who a key belongs to
//	sealed.go    the format of a sealed text, and its cipher
//	master.go    the master keys, and wrapping under them
//	records.go   the records of the topic
//	ring.go      the keys in memory
//	cache.go     the ciphers that were used lately
//	keyring.go   the Keyring: start, seal, open
//	follow.go    reads the topic, and reads it to its end
//	metrics.go   what is counted
//	make.go      makes the key of a subject
//	erase.go     destroys the keys of a subject; the audit
//	personal.go  which fields of orders and riders are sealed, and opening them for answers
//	rewrap.go    wraps all keys under the newest master key
package subjectkeys
