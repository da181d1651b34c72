package subjectkeys

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"tomato/domain"
	"tomato/eventlog"
)

// The records of the topic, by their keys:
//
//	customer/<id>/<key id>        a key; a tombstone when it is destroyed
//	erased/customer/<id>/<uuid>   somebody has asked to erase the subject; replaced when it is done
//	mark                          moves the log on, so that compaction can remove destroyed keys
const (
	erasedPrefix = "erased/"
	markKey      = "mark"
)

// recordKey returns the key of the record of a subject's key.
func recordKey(subject Subject, id KeyID) string { return subject.String() + "/" + id.String() }

// parseRecordKey reads what recordKey has written. ok is false for all other records.
func parseRecordKey(s string) (subject Subject, id KeyID, ok bool) {
	i := strings.LastIndexByte(s, '/')
	if i < 0 || len(s)-i-1 != 2*keyIDBytes {
		return Subject{}, 0, false
	}
	id, ok = parseKeyID(s[i+1:])
	subject, err := ParseSubject(s[:i])
	return subject, id, ok && err == nil
}

// parseKeyID reads what KeyID.String has written.
func parseKeyID(s string) (id KeyID, ok bool) {
	n, err := strconv.ParseUint(s, 16, 64)
	return KeyID(n), err == nil && n != 0 && KeyID(n).String() == s
}

// keyValue is the value of a key's record.
type keyValue struct {
	V         int       `json:"v"`
	Master    string    `json:"master"`  // fingerprint of the master key
	Wrapped   string    `json:"wrapped"` // base64url
	CreatedAt time.Time `json:"createdAt"`
}

func encodeKey(m *Master, w *wrappedKey, createdAt time.Time) ([]byte, error) {
	return json.Marshal(keyValue{1, m.fingerprint, base64.RawURLEncoding.EncodeToString(w[:]), domain.Time(createdAt)})
}

func decodeKey(value []byte) (v keyValue, w wrappedKey, err error) {
	if err := json.Unmarshal(value, &v); err != nil {
		return v, w, err
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(v.Wrapped)
	switch {
	case v.V != 1:
		return v, w, fmt.Errorf("its version is %d, and this build knows 1", v.V)
	case err != nil || len(b) != len(w):
		return v, w, errors.New("wrapped is no wrapped key")
	}
	return v, wrappedKey(b), nil
}

// Erasure says that a subject was erased, or that somebody has begun to erase it.
type Erasure struct {
	ID          string    // a UUID
	Subject     Subject   // who was erased
	At          time.Time // when it was asked for
	CompletedAt time.Time // when everything was done; zero: it was begun, and is not finished
	By          string    // who asked for it: ops:<sub>, or cli:<user>
	Reason      string
	Keys        int // how many keys are destroyed by it; 0 if the subject had none

	ids []KeyID // of these keys; none in the records of earlier builds
}

// erasureValue is the value of the record of an erasure. Earlier builds have written only
// the first five fields, when everything was done.
type erasureValue struct {
	V           int       `json:"v"`
	At          time.Time `json:"at"`
	By          string    `json:"by"`
	Reason      string    `json:"reason"`
	Keys        int       `json:"keys"`
	KeyIDs      []string  `json:"keyIds,omitempty"`
	Begun       bool      `json:"begun,omitempty"`      // it is not finished
	CompletedAt time.Time `json:"completedAt,omitzero"` // if it is not at
}

// encode returns the record of the erasure.
func (e *Erasure) encode() (key string, value []byte, err error) {
	v := erasureValue{V: 1, At: e.At, By: e.By, Reason: e.Reason, Keys: e.Keys, Begun: e.CompletedAt.IsZero()}
	for _, id := range e.ids {
		v.KeyIDs = append(v.KeyIDs, id.String())
	}
	if !e.CompletedAt.Equal(e.At) {
		v.CompletedAt = e.CompletedAt
	}
	value, err = json.Marshal(v)
	return erasedPrefix + e.Subject.String() + "/" + e.ID, value, err
}

// decodeErasure reads what encode has written.
func decodeErasure(key string, value []byte) (Erasure, error) {
	rest := strings.TrimPrefix(key, erasedPrefix)
	i := strings.LastIndexByte(rest, '/')
	if i < 0 || !domain.ValidID(rest[i+1:]) {
		return Erasure{}, fmt.Errorf("%q is no erasure", key)
	}
	subject, err := ParseSubject(rest[:i])
	if err != nil {
		return Erasure{}, err
	}
	var v erasureValue
	if err := json.Unmarshal(value, &v); err != nil {
		return Erasure{}, err
	}
	if v.V != 1 {
		return Erasure{}, fmt.Errorf("the erasure's version is %d, and this build knows 1", v.V)
	}
	e := Erasure{ID: rest[i+1:], Subject: subject, At: v.At.UTC(), CompletedAt: v.CompletedAt.UTC(), By: v.By, Reason: v.Reason, Keys: v.Keys}
	if !v.Begun && v.CompletedAt.IsZero() {
		e.CompletedAt = e.At
	}
	for _, text := range v.KeyIDs {
		id, ok := parseKeyID(text)
		if !ok {
			return Erasure{}, fmt.Errorf("the erasure names a key %q", eventlog.LogText(text))
		}
		e.ids = append(e.ids, id)
	}
	return e, nil
}
