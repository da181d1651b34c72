package shard

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"tomato/eventlog"
)

// This file owns the memory of idempotency keys that were used recently.

// keyTTL is how long an idempotency key is remembered.
const keyTTL = 24 * time.Hour

// keyScope is the hash of what an idempotency key is unique in: the caller, the
// command, the aggregate, and the key itself.
type keyScope [12]byte

// keyUse is the first successful use of a key.
type keyUse struct {
	body    [8]byte // hash of the request's body
	on      *entry
	ordinal int64 // of the append under this claim; 0 if the use was replayed
	at      int64 // Unix milliseconds
	status  int32 // HTTP status of the answer
}

// expired reports whether the use is older than keyTTL.
func (u keyUse) expired(now time.Time) bool {
	return now.UnixMilli()-u.at > keyTTL.Milliseconds()
}

// keyMemory remembers idempotency keys for keyTTL. It is rebuilt from snapshots and
// from the events, which have the key and the hash of the body in a header.
type keyMemory struct {
	known map[keyScope]keyUse
	order []keyAge // oldest first, as far as the clocks of successive owners agree
}

type keyAge struct {
	scope keyScope
	at    int64 // Unix milliseconds
}

// add remembers the use of a key on e. An expired key may be used again, also on
// another aggregate.
func (m *keyMemory) add(e *entry, scope keyScope, u keyUse) {
	if old, ok := m.known[scope]; !ok || old.on != e || old.at != u.at {
		m.order = append(m.order, keyAge{scope, u.at})
		if len(e.keys) == cap(e.keys) { // before the slice grows, the keys that are forgotten are taken out
			e.keys = slices.DeleteFunc(e.keys, func(k keyScope) bool { return m.known[k].on != e })
		}
		e.keys = append(e.keys, scope)
	}
	u.on = e
	m.known[scope] = u
}

// forget removes the expired keys.
func (m *keyMemory) forget(now time.Time) {
	n := 0
	for n < len(m.order) && (keyUse{at: m.order[n].at}).expired(now) {
		if k := m.order[n]; m.known[k.scope].at == k.at { // otherwise the key was used again since
			delete(m.known, k.scope)
		}
		n++
	}
	m.order = m.order[n:]
}

// replay remembers the key that an event in the log has, unless it is expired.
func (m *keyMemory) replay(held *entry, e *eventlog.Event, now time.Time) {
	if e.Idempotency == "" {
		return
	}
	if scope, u, ok := parseKeyUse(e.Idempotency); ok {
		if u.at = e.Time.UnixMilli(); !u.expired(now) {
			m.add(held, scope, u)
		}
	}
}

// textOf returns the snapshot header that keeps the newest keys used on e, at most
// keysSaved.
func (m *keyMemory) textOf(e *entry) string {
	var b strings.Builder
	for _, scope := range e.keys[max(0, len(e.keys)-keysSaved):] {
		u := m.known[scope]
		if u.on != e { // the key is forgotten, or was used again on another aggregate
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, "%s.%d", u.text(scope), u.at)
	}
	return b.String()
}

// text returns the use as an event's header has it: scope and body together as
// base64url (RFC 4648, without padding), a dot, and the status.
func (u keyUse) text(scope keyScope) string {
	return base64.RawURLEncoding.EncodeToString(append(scope[:], u.body[:]...)) + "." + strconv.Itoa(int(u.status))
}

// parseKeyUse parses what text has written. It ignores what follows a further dot,
// such as the time in a snapshot header.
func parseKeyUse(s string) (scope keyScope, u keyUse, ok bool) {
	hashes, rest, _ := strings.Cut(s, ".")
	b, err := base64.RawURLEncoding.DecodeString(hashes)
	if err != nil || len(b) != len(scope)+len(u.body) {
		return scope, u, false
	}
	copy(scope[:], b)
	copy(u.body[:], b[len(scope):])
	text, _, _ := strings.Cut(rest, ".")
	status, err := strconv.ParseInt(text, 10, 32)
	u.status = int32(status)
	return scope, u, err == nil
}

// scopeOf returns the scope of the request's idempotency key.
func scopeOf(r *Request) keyScope {
	id := r.ID
	if isPlace(r.Command) {
		id = "" // every try draws a new id
	}
	h := sha256.New()
	for _, s := range []string{string(r.Actor.Role), r.Actor.Sub, r.Command.CommandName(), r.Topic, id, r.IdempotencyKey} {
		h.Write([]byte(s))
		h.Write([]byte{0})
	}
	return keyScope(h.Sum(nil)[:len(keyScope{})])
}

// bodyOf returns the hash of the request's body.
func bodyOf(r *Request) [8]byte {
	sum := sha256.Sum256([]byte(r.BodyHash))
	return [8]byte(sum[:8])
}
