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
)

// The records of the topic, by their keys:
//
//	customer/<id>/<key id>        a key; a tombstone when it is destroyed
//	erased/customer/<id>/<uuid>   somebody has erased the subject
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
	n, err := strconv.ParseUint(s[i+1:], 16, 64)
	subject, serr := ParseSubject(s[:i])
	return subject, KeyID(n), err == nil && serr == nil && n != 0 && KeyID(n).String() == s[i+1:]
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

// Erasure says that a subject was erased. Its JSON is part of the calls of operators.
type Erasure struct {
	ID      string    // a UUID
	Subject Subject   // who was erased
	At      time.Time // when
	By      string    // who did it: ops:<sub>, or cli:<user>
	Reason  string
	Keys    int // how many keys were destroyed; 0 if the subject had none
}

// erasureValue is the value of the record of an erasure.
type erasureValue struct {
	V      int       `json:"v"`
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
	Keys   int       `json:"keys"`
}

// encode returns the record of the erasure.
func (e *Erasure) encode() (key string, value []byte, err error) {
	value, err = json.Marshal(erasureValue{1, e.At, e.By, e.Reason, e.Keys})
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
	return Erasure{ID: rest[i+1:], Subject: subject, At: v.At.UTC(), By: v.By, Reason: v.Reason, Keys: v.Keys}, nil
}
